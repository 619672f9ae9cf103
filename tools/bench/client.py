# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a server on this machine, for as little of the processor as can be: what comes is kept with its time, and read later.

So what is measured is the server, though both share the machine.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, cast

import msgspec
from bench.answers import CHUNKED, END_OF_CHUNKS, Answer, Arrival, read_answer, read_length
from bench.figures import FailedError

HOST = "127.0.0.1"
# Between two looks at what has come, where a measurement waits for it to begin.
LOOK_S = 0.005


class Collected(NamedTuple):
    """What came for a request, and when. `is_whole`: it ended as it should."""

    asked_s: float
    arrivals: list[Arrival]
    is_whole: bool

    def read(self) -> Answer:
        """As an answer. Raises what `read_answer` does."""
        return read_answer(self.arrivals, is_whole=self.is_whole)


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self._transport: asyncio.Transport | None = None
        self._ended = asyncio.Event()
        self._is_whole = False
        self._tail = b""
        self._received = 0
        self._length: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # of TCP; uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.arrivals.append((time.perf_counter(), data))
        self._received += len(data)
        if self._length is None:
            self._length = read_length(b"".join(piece for _, piece in self.arrivals))
        self._tail = (self._tail + data)[-len(END_OF_CHUNKS) :]
        if self._length == CHUNKED:
            self._is_whole = self._tail == END_OF_CHUNKS
        else:
            self._is_whole = self._length is not None and self._received >= self._length
        if self._is_whole:
            self._ended.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()

    async def collect(self, method: str, path: str, body: object = None) -> Collected:
        """All that comes, once the answer has ended or the connection is lost. Unread, which would take time."""
        assert self._transport is not None
        self.arrivals = []
        self._ended.clear()
        self._is_whole, self._tail, self._received, self._length = False, b"", 0, None
        asked_s = time.perf_counter()
        if self._transport.is_closing():
            return Collected(asked_s, [], is_whole=False)
        self._transport.write(_write_request(method, path, body))
        await self._ended.wait()
        return Collected(asked_s, self.arrivals, self._is_whole)

    async def ask(self, method: str, path: str, body: object = None) -> Answer:
        """The answer.

        Raises:
            FailedError: none came.
        """
        return (await self.collect(method, path, body)).read()

    async def until_heard(self, pieces: int) -> None:
        """Until as many pieces of the answer have come."""
        while len(self.arrivals) < pieces:
            if self._ended.is_set():
                raise FailedError(f"the stream ended early: {self.arrivals[-1:]}")
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        """Whatever it still waits for."""
        assert self._transport is not None
        self._transport.close()


def _write_request(method: str, path: str, body: object) -> bytes:
    encoded = b"" if body is None else msgspec.json.encode(body)
    return (
        f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(encoded)}\r\n\r\n"
    ).encode() + encoded


@asynccontextmanager
async def open_connection(port: int) -> AsyncIterator[Connection]:
    """A connection to a port of this machine.

    Raises:
        OSError: nothing listens there.
    """
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, HOST, port)
    try:
        yield connection
    finally:
        connection.close()


async def ask(port: int, method: str, path: str, body: object = None) -> Answer:
    """One request on a connection of its own."""
    async with open_connection(port) as connection:
        return await connection.ask(method, path, body)


async def ask_well(port: int, method: str, path: str, body: object = None) -> Answer:
    """As `ask`, of what must work.

    Raises:
        FailedError: it answers with another status than 200.
    """
    answer = await ask(port, method, path, body)
    if answer.status != 200:
        said = answer.body[:1000].decode("utf-8", "replace")
        raise FailedError(f"{method} {path} gave {answer.status}: {said}")
    return answer
