# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose conversation is a request, as a number that stays the same from turn to turn?

The same in every worker and after every restart. Pure.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from zlib import crc32

import msgspec

# Headers by which clients name their conversation, those first that mean just that: OpenCode, Claude Code, Codex.
SESSION_HEADERS = (
    b"x-session-affinity",
    b"x-claude-code-session-id",
    b"x-session-id",
    b"session-id",
    b"session_id",
    b"thread-id",
)
# Of a text: enough to tell conversations apart.
MOST_BYTES = 1024
# An answer's prompt grows from turn to turn where there are no messages: its start stays.
START_BYTES = 512

_RANK = {name: rank for rank, name in enumerate(SESSION_HEADERS)}
_NOTHING = msgspec.Raw(b"")
_MASK = 0xFFFFFFFF
_LIST = ord("[")


class _Part(msgspec.Struct, frozen=True, gc=False):
    text: msgspec.Raw = _NOTHING


class _Message(msgspec.Struct, frozen=True, gc=False):
    role: str | None = None
    content: msgspec.Raw = _NOTHING


class _First(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The first of a list; the rest is passed over, however long it is."""

    a: _Message | None = None
    b: _Message | None = None
    c: _Message | None = None
    d: _Message | None = None

    @property
    def messages(self) -> list[_Message]:
        return [each for each in (self.a, self.b, self.c, self.d) if each is not None]


class _Asked(msgspec.Struct, frozen=True, gc=False):
    prompt_cache_key: str | None = None
    metadata: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    messages: _First | None = None
    input: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING


class _Metadata(msgspec.Struct, frozen=True, gc=False):
    user_id: str | None = None


_READ = msgspec.json.Decoder(_Asked)
_READ_METADATA = msgspec.json.Decoder(_Metadata)
_READ_FIRST = msgspec.json.Decoder(_First)
_READ_PARTS = msgspec.json.Decoder(list[_Part])
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_session(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> int:
    """The conversation's number, of 64 bits at most.

    1. By a header of SESSION_HEADERS; names are lower case.
    2. By `prompt_cache_key`, or a `metadata.user_id` that names a session.
    3. By its first messages: system text, and all up to the user's first message, four at most.
    4. By the start of its prompt or input, which is no list of messages.
    """
    named = _named(headers)
    return _digest(named) if named else _read(body)


def _digest(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest())


def _named(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    found = [(_RANK[name], value) for name, value in headers if name in _RANK and value]
    return min(found)[1] if found else b""


def _read(body: bytes) -> int:
    try:
        asked = _READ.decode(body)
    except _UNREADABLE:  # who serves it will say so
        return crc32(body[:START_BYTES])
    if asked.prompt_cache_key:
        return _digest(asked.prompt_cache_key.encode())
    if user := _user_session(asked.metadata):
        return _digest(user)
    return _first_messages(asked) or crc32(_start(asked))


def _user_session(metadata: msgspec.Raw) -> bytes:
    """What Claude Code calls a user is its session too; of others it is a person, who has many."""
    if metadata is _NOTHING:
        return b""
    try:
        user_id = _READ_METADATA.decode(metadata).user_id or ""
    except _UNREADABLE:
        return b""
    return user_id.encode() if "session" in user_id else b""


def _first_messages(asked: _Asked) -> int:
    """0: it has none. A checksum tells texts well enough apart, and costs a fifth of a digest."""
    messages = asked.messages.messages if asked.messages else _input_messages(asked.input)
    if not messages:
        return 0
    number = 0
    for text in (asked.system, asked.instructions):
        if text is not _NOTHING:
            number = crc32(_said(text), ~number & _MASK)  # what has no text counts too
    for message in messages:
        number = crc32(_said(message.content), ~number & _MASK)
        if message.role == "user":
            break
    return number


def _input_messages(given: msgspec.Raw) -> Sequence[_Message]:
    if given is _NOTHING:
        return ()
    try:
        return _READ_FIRST.decode(given).messages
    except _UNREADABLE:  # a text, or texts
        return ()


def _said(content: msgspec.Raw) -> bytes | memoryview:
    """The text of a content, as it is written; marks for caching beside it move as a conversation goes on."""
    start = memoryview(content)[:MOST_BYTES]
    if not start or start[0] != _LIST:
        return start
    try:
        parts = _READ_PARTS.decode(content)
    except _UNREADABLE:
        return start
    return b"".join([bytes(part.text) for part in parts])[:MOST_BYTES]


def _start(asked: _Asked) -> bytes:
    return (bytes(asked.prompt) or bytes(asked.input))[:START_BYTES]
