# SPDX-License-Identifier: GPL-3.0-or-later
"""Is this chunk of a stream the one before with another text? Then it need not be read as JSON.

Servers write chunk after chunk alike but for what the model says. So what a chunk was read as tells what another one
means that begins and ends in the same bytes. Pure.
"""

import re

import msgspec

from cortex_gateway.dialects.chat_parts import Chunk, ChunkChoice, Said

_ENCODE = msgspec.json.Encoder()
_READ = msgspec.json.Decoder(Chunk)

# A text that JSON holds as it is: nothing in it is escaped, so it ends where the first quote is.
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]+')
_FIELDS = ("content", "reasoning_content", "reasoning")


class Frame:
    """An event whose chunk says one text and nothing else, without that text.

    Args:
        field: of the delta, which holds the text.
        head: of the chunk, up to the text.
        tail: of the chunk, after the text.
    """

    def __init__(self, field: str, head: bytes, tail: bytes) -> None:
        self.field = field
        self._head = b"data: %b" % head
        self._tail = b"%b\n\n" % tail

    def fits(self, event: bytes) -> bool:
        """Whether it may be the same but for its text."""
        return event.startswith(self._head) and event.endswith(self._tail)

    def read(self, event: bytes) -> str | None:
        """The text of an event that is the same but for that; None: it is not, or must be read to tell."""
        if not (event.startswith(self._head) and event.endswith(self._tail)):
            return None
        text = _PLAIN.fullmatch(event, len(self._head), len(event) - len(self._tail))
        try:
            return text[0].decode() if text else None
        except UnicodeDecodeError:
            return None


def find_frame(data: bytes, chunk: Chunk) -> Frame | None:
    """The frame of `data`, which was read as `chunk`; None: it says no text, or something beside it."""
    said = chunk.choices[0].delta if chunk.choices else None
    field = next((name for name in _FIELDS if getattr(said, name, None)), None)
    if field is None:
        return None
    text: str = getattr(said, field)
    # Where it seems to be: whether it is, reading another one in its place tells.
    start = data.find(_ENCODE.encode(text), data.find(field.encode()))
    head, tail = data[: start + 1], data[start + len(_ENCODE.encode(text)) - 1 :]
    return Frame(field, head, tail) if _is_proven(head, tail, text, field, chunk) else None


def _is_proven(head: bytes, tail: bytes, text: str, field: str, chunk: Chunk) -> bool:
    """Whether a chunk with another text differs in that alone, and says nothing else."""
    other = f"{text}."
    said = [ChunkChoice(delta=msgspec.structs.replace(Said(), **{field: other}))]
    meant = Chunk(id=chunk.id, created=chunk.created, model=chunk.model, choices=said)
    try:
        return _READ.decode(head + _ENCODE.encode(other)[1:-1] + tail) == meant
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
