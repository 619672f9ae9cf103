# SPDX-License-Identifier: GPL-3.0-or-later
"""Server-Sent Events as bytes, cut anywhere: which events have arrived whole, and what each says.

A line ends at CR, LF or CRLF and at nothing else, an empty line ends an event
(https://html.spec.whatwg.org/multipage/server-sent-events.html). Python's text line readers also split at
U+2028 and others, which would cut JSON in two. Pure.
"""

import re
from typing import NamedTuple

# A CR at the very end may be half of a CRLF; `Splitter` waits for the next byte before it decides.
_END_OF_EVENT = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINE = re.compile(rb"\r\n|\n|\r")

DONE = b"data: [DONE]\n\n"


class TooLongError(ValueError):
    """An event is longer than the splitter may hold. The sender's fault."""


class Splitter:
    """Gathers cut bytes into whole events, each with the empty line that ends it."""

    def __init__(self, max_event_bytes: int = 64 * 1024 * 1024) -> None:
        self._pending = b""
        self._max_event_bytes = max_event_bytes

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; return the events that are whole now.

        Raises:
            TooLongError: an event does not end within `max_event_bytes`.
        """
        buffer = self._pending + chunk if self._pending else chunk
        events = []
        start = 0
        for match in _END_OF_EVENT.finditer(buffer):
            if match.end() == len(buffer) and buffer.endswith(b"\r"):
                break
            events.append(buffer[start : match.end()])
            start = match.end()
        self._pending = buffer[start:]
        if len(self._pending) > self._max_event_bytes:
            raise TooLongError(f"an event of more than {self._max_event_bytes} bytes")
        return events

    @property
    def is_waiting(self) -> bool:
        """Whether a part of an event is kept back."""
        return bool(self._pending)

    def flush(self) -> bytes:
        """End of stream: what is left. A last event without its empty line was cut off, unless it ends in CR CR."""
        rest, self._pending = self._pending, b""
        return rest


class Event(NamedTuple):
    """One event. `data` is None where the event has no data line, such as a comment."""

    data: bytes | None
    event: bytes = b"message"
    comment: bytes | None = None


def read_event(raw: bytes) -> Event:
    """One whole event, as Splitter gives it."""
    data: list[bytes] = []
    name = b"message"
    comment: bytes | None = None
    for line in _LINE.split(raw):
        if not line:
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif not field:
            comment = value
    return Event(b"\n".join(data) if data else None, name, comment)


def write_data(data: bytes) -> bytes:
    """One event with one line of data. `data` must hold no line end; JSON encoders write none."""
    return b"data: " + data + b"\n\n"


def write_comment(text: bytes) -> bytes:
    """A comment, which clients skip: keeps a connection alive."""
    return b": " + text + b"\n\n"
