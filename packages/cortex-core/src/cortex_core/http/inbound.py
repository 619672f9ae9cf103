# SPDX-License-Identifier: GPL-3.0-or-later
"""A client's HTTP/1.1 connection: bytes to requests, one answered after the other.

llhttp parses, and refuses what requests are smuggled by: two lengths, a length beside chunks, bare line feeds, folded headers.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

from cortex_core import logs
from cortex_core.errors import InvalidRequestBodyError, write_openai
from cortex_core.http.cycle import Cycle
from cortex_core.http.exchange import Receive, Scope, Send

log = logs.get(__name__)

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
# Requests that may have come before the answer to the first of them is complete.
MAX_PIPELINED = 16
# Longer than our client keeps an idle connection (`pool.KEEP_IDLE_S`).
KEEP_ALIVE_S = 75.0
# The longest that a request's head may take to come.
HEAD_S = 30.0
# A client that takes nothing of its answer for so long is taken for gone.
STUCK_S = 300.0
# How long the other end may take to close a connection that we have said all on. Closed by us
# at once, what it still sends would be answered by a reset, and our last words be lost.
LINGER_S = 5.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n"


class State(Enum):
    """What a connection waits for: a request's head, our own answer, or the other end's closing; or it is over."""

    HEAD = "head"
    ANSWER = "answer"
    LINGER = "linger"
    OVER = "over"


class Inbound(asyncio.Protocol):
    """One connection, on a transport that it is the protocol of.

    Attributes:
        ended: done when it is lost and what it served has ended, or when it is another protocol's.
        handed_over: what has come of HTTP/2, or of an upgrade in the first request; None: it is ours.
    """

    def __init__(self, app: Application, transport: asyncio.Transport, scheme: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.handed_over: bytes | None = None
        self._app = app
        self._transport = transport
        self._scheme = scheme
        self._client = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        self._parser = httptools.HttpRequestParser(self)
        self._state = State.HEAD
        self._since_s = self._loop.time()
        # The first is being served; those behind it came before its answer was complete.
        self._cycles: deque[Cycle] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._broken: str | None = None
        # All that came, until the first request's head is read: then it is known whose connection it is.
        self._unclaimed: bytes | None = b""
        self._in_head = True
        # Since the last head, piece of a body, or end: heads and trailers are kept by the parser until they are whole.
        self._fruitless_bytes = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._reading = True
        self._room: asyncio.Future[None] | None = None

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._state is State.LINGER or self._broken is not None:
            return
        if self._unclaimed is not None:
            self._unclaimed += data
        if self._state is State.HEAD and not self._fruitless_bytes:
            self._since_s = self._loop.time()
        self._fruitless_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._unclaimed is not None:
                self._hand_over()
        except httptools.HttpParserError as error:
            if self._unclaimed is not None and self._unclaimed.startswith(HTTP2_PREFACE):
                self._hand_over()
            else:  # what a callback raised is its context
                self._break(str(error.__context__ or error))
        else:
            if self._fruitless_bytes > MAX_HEAD_BYTES:
                self._break(f"its headers are longer than {MAX_HEAD_BYTES} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is lost; a client that sends no more counts as gone too."""
        self._state = State.OVER
        for cycle in self._cycles:
            cycle.lose()
        self.resume_writing()
        self._note_ended()

    def pause_writing(self) -> None:
        """The client takes too little."""
        self._room = self._loop.create_future()
        self._since_s = self._loop.time()

    def resume_writing(self) -> None:
        """The client takes again."""
        if self._room is not None:
            self._room.set_result(None)
            self._room = None

    # What the parser calls. What is raised here reaches `data_received` as the context of the parser's own error.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._headers, self._in_head = b"", [], True

    def on_url(self, url: bytes) -> None:
        """Some of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nobody asked for."""
        if self._in_head:
            self._headers.append((name.lower(), value.rstrip(b" \t")))
        if len(self._headers) > MAX_HEADERS:
            raise ValueError(f"it has more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        """Its head is complete: it can be served."""
        self._in_head, self._fruitless_bytes = False, 0
        sent = dict(self._headers)
        is_upgrade = self._parser.should_upgrade()
        if is_upgrade and self._unclaimed is not None and b"upgrade" in sent:
            return  # hypercorn knows what to make of it
        if is_upgrade and sent.keys() & {b"content-length", b"transfer-encoding"}:
            # The parser would pass over its body.
            raise ValueError("it asks for another protocol, and has a body")
        self._unclaimed = None
        version = self._parser.get_http_version()
        if version == "1.1" and b"host" not in sent:
            raise ValueError("it has no Host header")
        cycle = Cycle(
            self,
            self._scope(version),
            keeps_alive=self._parser.should_keep_alive() and not is_upgrade,
            awaits_continue=sent.get(b"expect", b"").lower() == b"100-continue",
        )
        self._cycles.append(cycle)
        if self._task is None:
            self._serve(cycle)
        elif len(self._cycles) > MAX_PIPELINED:
            self._pause()

    def on_body(self, data: bytes) -> None:
        """Some of its body."""
        self._fruitless_bytes = 0
        if self._cycles and not self._cycles[-1].feed(data):
            self._pause()

    def on_message_complete(self) -> None:
        """It has come whole."""
        self._in_head, self._fruitless_bytes = True, 0
        if self._cycles:
            self._cycles[-1].complete()

    def _scope(self, version: str) -> Scope:
        target = self._url
        if not target.startswith(b"/"):  # whole, as proxies are asked
            parsed = httptools.parse_url(target) if b"://" in target else None
            query = b"?" + parsed.query if parsed and parsed.query else b""
            target = ((parsed.path or b"/") if parsed else target) + query
        raw_path, _, query = target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": self._scheme,
            "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "client": self._client,
            "server": self._server,
            "extensions": {},
        }

    # What the cycle calls.

    def write(self, data: bytes) -> None:
        """Send bytes now, or keep them until they can be."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait while the client takes too little of what was written."""
        if self._room is not None:
            await self._room

    def take_more(self) -> None:
        """What was kept of the body has been taken."""
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    # Its life.

    def _serve(self, cycle: Cycle) -> None:
        self._state = State.ANSWER
        self._task = self._loop.create_task(self._run(cycle))

    async def _run(self, cycle: Cycle) -> None:
        try:
            await self._app(cycle.scope, cycle.receive, cycle.send)
        except Exception:  # the outermost layer: the application answers its own faults
            log.exception("unhandled fault", path=cycle.scope["path"])
        finally:
            self._task = None
            self._go_on(self._cycles.popleft())

    def _go_on(self, served: Cycle) -> None:
        """What follows a request that has been served."""
        if self._state is State.OVER:
            self._note_ended()
        elif self._state is State.LINGER:  # its own body was broken
            pass
        elif not served.is_answered:
            self._transport.abort()
        elif not served.is_complete:
            self._linger()
        elif self._closing or not served.keeps_alive:
            self._close()
        elif self._cycles:
            self._serve(self._cycles[0])
            self.take_more()
        elif self._broken is not None:
            self._refuse(self._broken)
        else:
            self._state = State.HEAD
            self._since_s = self._loop.time()
            self.take_more()

    def _break(self, reason: str) -> None:
        """What came is no HTTP. Complete requests before it are answered first."""
        self._broken = reason
        if self._cycles and not self._cycles[-1].is_complete:
            broken = self._cycles[-1]
            broken.lose()
            if len(self._cycles) > 1:
                self._cycles.pop()
            elif broken.has_begun:
                self._transport.abort()
            else:
                self._refuse(reason)
        elif not self._cycles:
            self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        body = write_openai(InvalidRequestBodyError(reason=f"The request is no HTTP/1.1: {reason}"))
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        )
        self.write(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        self._linger()

    def _close(self) -> None:
        """All is said, and heard: what is not sent yet still is."""
        self._state = State.LINGER
        self._since_s = self._loop.time()
        self._transport.close()

    def _linger(self) -> None:
        """All is said, and not heard: what still comes is dropped, until the other end closes."""
        if not self._transport.can_write_eof():
            self._close()
        elif not self._transport.is_closing():
            self._transport.write_eof()
            self._state = State.LINGER
            self._since_s = self._loop.time()
            self.take_more()

    def _hand_over(self) -> None:
        self.handed_over = self._unclaimed
        self._state = State.OVER
        self._transport.pause_reading()
        self._note_ended()

    def _note_ended(self) -> None:
        if self._task is None and not self.ended.done():
            self.ended.set_result(None)

    def finish(self) -> None:
        """Take no more requests: closed once the present one is answered, or now."""
        self._closing = True
        if self._task is None:
            self._close()

    def cut(self) -> None:
        """Break off."""
        self._transport.abort()

    async def stop(self) -> None:
        """Break off, and wait until what it served has ended."""
        self.cut()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def sweep(self, now_s: float) -> None:
        """End what takes too long. To be called every few seconds."""
        waited_s = now_s - self._since_s
        if self._state is State.HEAD:
            if waited_s > (HEAD_S if self._fruitless_bytes else KEEP_ALIVE_S):
                self._close()
        elif self._state is State.LINGER:
            if waited_s > (STUCK_S if self._transport.get_write_buffer_size() else LINGER_S):
                self._transport.abort()
        elif self._room is not None and waited_s > STUCK_S:
            self._transport.abort()


def _address(told: Any) -> tuple[str, int] | None:
    """Host and port; None: a unix socket, which has neither."""
    return (told[0], told[1]) if isinstance(told, tuple) else None
