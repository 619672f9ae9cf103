# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands between a gateway and a neuron, and spoils what the neuron says, as it is told."""

import asyncio
import contextlib
import re
from typing import NamedTuple
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
_LOOK_S = 0.01
HOST = "127.0.0.1"
# No HTTP at all; HTTP, and no JSON; another server's page; JSON of nothing that was asked for; a stream of nothing.
NOISE = b"\x16\x03\x01\x00\xa5 this is no HTTP \x00\xff\r\n\r\n" * 3
_HEAD = b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-type: %b\r\n\r\n%b"
NO_JSON = _HEAD % (b"200 OK", b"application/json", b"\xff\xfe not JSON")
PAGE = _HEAD % (b"502 Bad Gateway", b"text/html", b"<html>nginx</html>")
NONSENSE = _HEAD % (b"200 OK", b"application/json", b'{"what": ["is", 3.14]}')
NO_EVENTS = _HEAD % (b"200 OK", b"text/event-stream", b"data: {\xff\n\ndata: 7\n\nretry: x\n\n")


class Fault(NamedTuple):
    """What becomes of an answer.

    Attributes:
        delay_s: seconds that the request is held back.
        hangs: nothing goes on, for as long as it is told so.
        says: bytes that are sent instead of the neuron's, and the end; None: its own.
        is_heard: the neuron is asked.
        is_early: what is sent instead does not wait for the neuron's answer.
        cut_after: bytes of the body after which the connection breaks; None: it does not.
    """

    delay_s: float = 0.0
    hangs: bool = False
    says: bytes | None = None
    is_heard: bool = True
    is_early: bool = False
    cut_after: int | None = None


PASS = Fault()
HANG = Fault(hangs=True)


class FaultProxy:
    """One neuron's way to the gateway. A connection is for one request, so that nothing is kept open.

    Attributes:
        upstream: the neuron's endpoint.
        control: what becomes of answers on the control plane.
        inference: likewise, of those below `/v1`; also of those that are under way.
        strikes: likewise, of requests of one path whose body has these bytes; they go before.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.control = self.inference = PASS
        self.strikes: dict[tuple[str, bytes], Fault] = {}
        self._port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._port}"

    async def listen(self) -> None:
        """Take connections, on the same port each time."""
        if self._server is None:
            self._server = await asyncio.start_server(self._take, HOST, self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Take no more connections; those that are open stay so."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def heal(self) -> None:
        """Do no harm any more."""
        self.control = self.inference = PASS
        self.strikes = {}
        await self.listen()

    async def close(self) -> None:
        """End all that is open."""
        self.refuse()
        while self._open:
            for writer in self._open:
                writer.transport.abort()  # which those that serve notice
            await asyncio.sleep(_LOOK_S)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(_HEAD_END)
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        head = _CONNECTION.sub(b"", head).removesuffix(_HEAD_END) + b"\r\nconnection: close"
        working = asyncio.ensure_future(self._answer(head + _HEAD_END + body, writer))
        leaving = asyncio.ensure_future(reader.read())  # to the end of what the gateway sends
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            leaving.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        fault = self._fault(request)
        await asyncio.sleep(fault.delay_s)
        if not fault.is_heard:
            await self._pass(request, b"", writer)
            return
        url = urlsplit(self.upstream)
        theirs, to_them = await asyncio.open_connection(url.hostname, url.port)
        try:
            to_them.write(request)
            head = b"" if fault.is_early else await theirs.readuntil(_HEAD_END)
            if await self._pass(request, head, writer):
                await self._relay(request, theirs, writer)
        finally:
            to_them.close()

    async def _relay(
        self, request: bytes, theirs: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        passed = 0
        while chunk := await theirs.read(65536):
            fault = self._fault(request)
            rest = len(chunk) if fault.cut_after is None else max(0, fault.cut_after - passed)
            if not await self._pass(request, chunk[:rest], writer):
                return
            passed += len(chunk)
            if rest < len(chunk):
                return

    async def _pass(self, request: bytes, data: bytes, writer: asyncio.StreamWriter) -> bool:
        """Send some of the neuron's answer, or what is sent instead; False: that was all."""
        while (fault := self._fault(request)).hangs:
            await asyncio.sleep(_LOOK_S)
        writer.write(data if fault.says is None else fault.says)
        await writer.drain()
        return fault.says is None

    def _fault(self, request: bytes) -> Fault:
        path = request.split(b" ", 2)[1].decode()
        for (struck, about), fault in self.strikes.items():
            if path == struck and about in request:
                return fault
        return self.inference if path.startswith("/v1/") else self.control
