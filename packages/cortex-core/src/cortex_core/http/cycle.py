# SPDX-License-Identifier: GPL-3.0-or-later
"""One request and its answer on an HTTP/1.1 connection of ours, as ASGI wants them."""

import asyncio
import functools
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from cortex_core.http.exchange import ON_LEAVE, Message, Scope

# Of a body that nobody takes, so many bytes are kept before the client is made to wait.
HIGH_BYTES = 256 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {
    s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus if s >= 200
}
# RFC 9110, sections 8.6 and 9.3.2: these have no body, whatever their headers say.
_WITHOUT_BODY = (204, 304)


class Wire(Protocol):
    """What a cycle needs of its connection."""

    def write(self, data: bytes) -> None:
        """Send bytes now, or keep them until they can be."""

    async def drained(self) -> None:
        """Wait while the client takes too little of what was written."""

    def take_more(self) -> None:
        """What was kept of the body has been taken."""


class Cycle:
    """One request, from its headers on, and its answer. Its connection feeds it, and is told by it.

    Attributes:
        scope: of ASGI.
        keeps_alive: whether the connection may serve another request after this one.
        is_complete: whether the whole request has come.
        is_answered: whether the whole answer has been written.
    """

    __slots__ = (
        "_awaits_continue",
        "_delivered",
        "_fields",
        "_frame",
        "_gone",
        "_on_leave",
        "_parts",
        "_size_bytes",
        "_status",
        "_waiter",
        "_wire",
        "is_answered",
        "is_complete",
        "keeps_alive",
        "scope",
    )

    def __init__(
        self, wire: Wire, scope: Scope, *, keeps_alive: bool, awaits_continue: bool
    ) -> None:
        self.scope = scope
        scope["extensions"][ON_LEAVE] = self._tell_leaving
        self.keeps_alive = keeps_alive
        self.is_complete = False
        self.is_answered = False
        self._wire = wire
        self._awaits_continue = awaits_continue
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._delivered = False
        self._gone = False
        self._on_leave: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        # The head of the answer is kept until its body begins, so that both leave in one write.
        self._status: int | None = None
        self._fields: list[bytes] | None = None
        self._frame = _whole

    @property
    def has_begun(self) -> bool:
        """Whether some of the answer has been written."""
        return self._status is not None and self._fields is None

    def feed(self, data: bytes) -> bool:
        """Some of the body has come. False: enough is kept for now."""
        if not self._gone and not self.is_answered:
            self._parts.append(data)
            self._size_bytes += len(data)
            self._wake()
        return self._size_bytes < HIGH_BYTES

    def complete(self) -> None:
        """The whole body has come."""
        self.is_complete = True
        self._wake()

    def lose(self) -> None:
        """The client is gone, or sent what is no HTTP."""
        self._gone = True
        self._wake()
        if self._on_leave is not None and not self.is_answered:
            self._on_leave()

    def _tell_leaving(self, on_leave: Callable[[], None] | None) -> None:
        self._on_leave = on_leave
        if self._gone and on_leave is not None:
            on_leave()

    async def receive(self) -> Message:
        """ASGI's receive: what has come of the body since, then `http.disconnect` when the client is gone."""
        while True:
            if self._gone or self.is_answered:
                return {"type": "http.disconnect"}
            if self._parts or (self.is_complete and not self._delivered):
                return self._take()
            if self._awaits_continue:
                self._awaits_continue = False
                self._wire.write(_CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _take(self) -> Message:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size_bytes = 0
        self._delivered = self.is_complete
        self._wire.take_more()
        return {"type": "http.request", "body": body, "more_body": not self.is_complete}

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def send(self, message: Message) -> None:
        """ASGI's send.

        Raises:
            ConnectionResetError: the client is gone.
        """
        if self._gone:
            raise ConnectionResetError("the client is gone")
        if message["type"] == "http.response.start":
            self._begin(message)
            return
        is_last = not message.get("more_body", False)
        out = self._head(message.get("body", b""), is_last) if self._fields is not None else b""
        out += self._frame(message.get("body", b""), is_last)
        if out:
            self._wire.write(out)
        if is_last:
            self.is_answered = True
            self._wake()
        else:
            await self._wire.drained()

    def _begin(self, message: Message) -> None:
        status = message["status"]
        self._status = status
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        self._fields = [line, _date()]
        has_length = False
        for name, value in message.get("headers", ()):
            if b"\n" in value or b"\r" in value:  # it could be a header, or an answer, of its own
                raise ValueError(f"the header {name!r} has a line's end in it")
            lowered = name.lower()
            has_length = has_length or lowered == b"content-length"
            if lowered == b"connection" and value.lower() == b"close":
                self.keeps_alive = False
            else:
                self._fields.append(b"%b: %b\r\n" % (name, value))
        if self.scope["method"] == "HEAD" or status in _WITHOUT_BODY:
            self._frame = _nothing
        else:
            self._frame = _whole if has_length else _chunked

    def _head(self, body: bytes, is_last: bool) -> bytes:
        fields = self._fields or []
        self._fields = None
        if self._frame is _chunked and is_last:
            self._frame = _whole
            fields.append(b"content-length: %d\r\n" % len(body))
        elif self._frame is _chunked and self.scope["http_version"] == "1.0":
            self._frame = _whole
            self.keeps_alive = False  # its end is the connection's
        elif self._frame is _chunked:
            fields.append(b"transfer-encoding: chunked\r\n")
        if not self.keeps_alive:
            fields.append(b"connection: close\r\n")
        elif self.scope["http_version"] == "1.0":
            fields.append(b"connection: keep-alive\r\n")
        fields.append(b"\r\n")
        return b"".join(fields)


def _whole(body: bytes, is_last: bool) -> bytes:
    return body


def _nothing(body: bytes, is_last: bool) -> bytes:
    return b""


def _chunked(body: bytes, is_last: bool) -> bytes:
    chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return chunk + b"0\r\n\r\n" if is_last else chunk


def _date() -> bytes:
    """The Date header of this second."""
    return _date_at(int(time.time()))


@functools.lru_cache(maxsize=1)
def _date_at(now_s: int) -> bytes:
    return f"date: {formatdate(now_s, usegmt=True)}\r\n".encode()
