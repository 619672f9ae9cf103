# SPDX-License-Identifier: GPL-3.0-or-later
"""What did a server answer, and when: read from the bytes after the last of them has come. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from bench.figures import FailedError

from cortex_core.sse import Splitter, read_event

# When it came, by the client's clock, and what came.
Arrival = tuple[float, bytes]

END_OF_HEAD = b"\r\n\r\n"
END_OF_CHUNKS = b"\r\n0\r\n\r\n"
CHUNKED = 0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None

    @property
    def says_something(self) -> bool:
        return bool(self.content or self.reasoning or self.reasoning_content or self.tool_calls)


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


_READ = msgspec.json.Decoder(_Chunk)


class Answer(NamedTuple):
    """One answer.

    `first_token_s`, `error_s`: when a stream first said something, and when its error event came; None: never.
    `end_s`: when the last of it came. `tokens`: as its usage says. `is_whole`: it ended as it should.
    """

    status: int
    head: bytes
    body: bytes
    end_s: float
    first_token_s: float | None = None
    error_s: float | None = None
    tokens: int = 0
    is_whole: bool = False

    @property
    def may_be_asked_again(self) -> bool:
        """Whether it is an error that asks for patience."""
        return self.status >= 400 and b"\r\nretry-after:" in self.head.lower()

    def check_spoken(self, tokens: int) -> float:
        """When the first token came, of a stream that said as many tokens as it was to say.

        Raises:
            FailedError: it is no such stream.
        """
        if self.first_token_s is None or not self.is_whole or self.tokens != tokens:
            raise FailedError(
                f"a stream of {tokens} tokens gave {self.tokens}, with status {self.status}: "
                f"{self.body[-500:].decode('utf-8', 'replace')}"
            )
        return self.first_token_s


def read_length(start: bytes) -> int | None:
    """Bytes that an answer which starts so has in all; CHUNKED: its end tells; None: the head is not whole yet."""
    head, found, _ = start.partition(END_OF_HEAD)
    if not found:
        return None
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(head) + len(found) + int(value)
    return CHUNKED


def read_answer(arrivals: Sequence[Arrival], *, is_whole: bool) -> Answer:
    """Read what came.

    Raises:
        FailedError: nothing came, or what came is no HTTP.
    """
    raw = b"".join(data for _, data in arrivals)
    head, found, _ = raw.partition(END_OF_HEAD)
    if not found or not head.startswith(b"HTTP/1."):
        raise FailedError(f"it gave no answer: {raw[:200]!r}")
    body = list(_skip(arrivals, len(head) + len(found)))
    if read_length(raw) == CHUNKED:
        body = list(_payloads(body))
    return _read_body(int(head[9:12]), head, body, arrivals[-1][0], is_whole)


def _skip(arrivals: Iterable[Arrival], count: int) -> Iterator[Arrival]:
    for at_s, data in arrivals:
        if len(data) > count:
            yield at_s, data[count:]
        count = max(0, count - len(data))


def _payloads(arrivals: Iterable[Arrival]) -> Iterator[Arrival]:
    """What the chunks of a chunked body hold, each when its last byte came."""
    pending = b""
    for at_s, data in arrivals:
        pending += data
        while True:
            size, found, rest = pending.partition(b"\r\n")
            length = int(size, 16) if found else 0
            if not found or len(rest) < length + 2:
                break
            yield at_s, rest[:length]
            pending = rest[length + 2 :]


def _read_body(
    status: int, head: bytes, body: Sequence[Arrival], end_s: float, is_whole: bool
) -> Answer:
    whole = b"".join(data for _, data in body)
    if b"text/event-stream" not in head.lower():
        return Answer(status, head, whole, end_s, is_whole=is_whole)
    first_token_s, error_s, tokens = None, None, 0
    for at_s, chunk in _chunks(body):
        if first_token_s is None and any(choice.delta.says_something for choice in chunk.choices):
            first_token_s = at_s
        if error_s is None and chunk.error is not None:
            error_s = at_s
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return Answer(status, head, whole, end_s, first_token_s, error_s, tokens, is_whole)


def _chunks(body: Iterable[Arrival]) -> Iterator[tuple[float, _Chunk]]:
    splitter = Splitter()
    for at_s, data in body:
        for raw in splitter.feed(data):
            said = read_event(raw).data
            if said is not None and said != b"[DONE]":
                yield at_s, _READ.decode(said)
