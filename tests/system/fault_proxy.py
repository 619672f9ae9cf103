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


class Fault(NamedTuple):
    """What becomes of an answer.

    Attributes:
        delay_s: seconds that the request is held back.
        hangs: nothing goes on, for as long as it is told so.
        says: bytes that are sent instead of the neuron's, and the end; None: its own.
        cut_after: bytes of the body after which the connection breaks; None: it does not.
    """

    delay_s: float = 0.0
    hangs: bool = False
    says: bytes | None = None
    cut_after: int | None = None


PASS = Fault()
HANG = Fault(hangs=True)


class FaultProxy:
    """One neuron's way to the gateway. A connection is for one request, so that nothing is kept open.

    Attributes:
        upstream: the neuron's endpoint.
        control: what becomes of answers on the control plane.
        inference: likewise, of those below `/v1`; also of those that are under way.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.control = self.inference = PASS
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
        is_inference = request.split(b" ", 2)[1].startswith(b"/v1/")
        await asyncio.sleep(self._fault(is_inference).delay_s)
        url = urlsplit(self.upstream)
        theirs, to_them = await asyncio.open_connection(url.hostname, url.port)
        try:
            to_them.write(request)
            head = await theirs.readuntil(_HEAD_END)
            if await self._pass(is_inference, head, writer):
                await self._relay(is_inference, theirs, writer)
        finally:
            to_them.close()

    async def _relay(
        self, is_inference: bool, theirs: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        passed = 0
        while chunk := await theirs.read(65536):
            fault = self._fault(is_inference)
            rest = len(chunk) if fault.cut_after is None else max(0, fault.cut_after - passed)
            if not await self._pass(is_inference, chunk[:rest], writer):
                return
            passed += len(chunk)
            if rest < len(chunk):
                return

    async def _pass(self, is_inference: bool, data: bytes, writer: asyncio.StreamWriter) -> bool:
        """Send some of the neuron's answer, or what is sent instead; False: that was all."""
        while (fault := self._fault(is_inference)).hangs:
            await asyncio.sleep(_LOOK_S)
        writer.write(data if fault.says is None else fault.says)
        await writer.drain()
        return fault.says is None

    def _fault(self, is_inference: bool) -> Fault:
        return self.inference if is_inference else self.control
