# SPDX-License-Identifier: GPL-3.0-or-later
"""One HTTP/1.1 connection to an upstream, for one request at a time."""

import asyncio
import math
import os
import socket
from collections.abc import Callable
from typing import cast

from cortex_core.errors import (
    FleetError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from cortex_core.http.answer import Answers, CutError, MalformedError
from cortex_core.http.headers import Headers
from cortex_core.http.sweeper import Sweeper

# Unread beyond this, the upstream is not listened to until its reader has caught up.
MAX_UNREAD_BYTES = 256 * 1024
# Up to this long a body leaves in one write with its head; the rest of a longer one as the connection takes it.
WRITE_BYTES = 256 * 1024
_NOTHING = memoryview(b"")


class Connection(asyncio.Protocol):
    """A connection, from its making to its loss.

    Args:
        upstream: what it leads to, as errors tell it.
        sweeper: keeps its deadlines.
        on_lost: called once, when nothing is left of it.

    Attributes:
        lost: done when nothing is left of it.
        deadline_s: when `expire` is to be called, by the loop's clock; infinity: never.
        idle_s: the longest silence of the upstream while it is waited for; may change when the head has come.
    """

    __slots__ = (
        "_answers",
        "_failure",
        "_is_paused",
        "_is_writable",
        "_loop",
        "_on_lost",
        "_sweeper",
        "_transport",
        "_unsent",
        "_upstream",
        "_waiter",
        "deadline_s",
        "idle_s",
        "lost",
    )

    def __init__(
        self, upstream: str, sweeper: Sweeper, on_lost: Callable[["Connection"], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.deadline_s = math.inf
        self._upstream = upstream
        self._sweeper = sweeper
        self._on_lost = on_lost
        self._answers = Answers()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: FleetError | None = None
        self.idle_s = math.inf
        self._unsent = _NOTHING
        self._is_writable = True
        self._is_paused = False

    @property
    def is_usable(self) -> bool:
        """Whether a request may be sent on it, as far as is known here."""
        return self._failure is None and self.deadline_s > self._loop.time()

    @property
    def is_done(self) -> bool:
        """Whether its answer has been taken to the last byte, and another request may follow."""
        answers = self._answers
        return (
            answers.is_reusable
            and not answers.unread_bytes
            and not self._unsent
            and self._failure is None
            and not self._wire.get_write_buffer_size()
        )

    @property
    def has_heard(self) -> bool:
        """Whether any byte of the answer has come."""
        return self._answers.has_begun

    def send(self, method: str, head: bytes, body: bytes, idle_s: float) -> None:
        """Send a request. Its answer may begin before its body is out, which then goes on.

        Args:
            method: of the request.
            head: complete, with its empty line.
            body: as long as the head says.
            idle_s: the longest silence of the upstream while it is waited for.

        Raises:
            FleetError: the connection has ended before.
        """
        if self._failure is not None:
            raise self._failure
        self._answers.expect(method)
        self.idle_s = idle_s
        self.deadline_s = math.inf
        self._wire.write(head + body[:WRITE_BYTES])
        if len(body) > WRITE_BYTES:
            self._unsent = memoryview(body)[WRITE_BYTES:]
            self._send_on()

    async def head(self) -> tuple[int, Headers]:
        """Status and headers of the answer. Raises FleetError, as `Reply.read` does."""
        answers = self._answers
        while not answers.status:
            await self._wait()
        return answers.status, answers.headers

    async def read(self) -> bytes:
        """As `Reply.read`."""
        answers = self._answers
        while not answers.unread_bytes:
            if answers.is_whole:
                return b""
            await self._wait()
        if self._is_paused:
            self._is_paused = False
            self._wire.resume_reading()
        return answers.take()

    def rest(self, until_s: float) -> None:
        """Keep it for another request, until then by the loop's clock."""
        self.deadline_s = until_s
        self._sweeper.note(until_s)

    def expire(self) -> None:
        """Its deadline has passed: whoever waits for it is told, and it is closed."""
        self.fail(UpstreamTimeoutError(upstream=self._upstream, idle_s=self.idle_s))

    def abort(self, reason: str) -> None:
        """Close it at once; what has not been sent or read yet is dropped."""
        self.fail(UpstreamConnectionError(upstream=self._upstream, reason=reason))

    def fail(self, error: FleetError) -> None:
        """Close it at once. Who waits for it, or reads on, is told so."""
        if self._failure is None:
            self._failure = error
        self.deadline_s = math.inf
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        answers = self._answers
        if answers.is_whole:  # the next request's answer would begin with it
            self.abort("it sent what nobody asked for")
            return
        try:
            answers.feed(data)
        except MalformedError as error:
            self.fail(UpstreamProtocolError(upstream=self._upstream, reason=str(error)))
            return
        if answers.unread_bytes > MAX_UNREAD_BYTES:
            self._is_paused = True
            self._wire.pause_reading()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        self._send_on()
        if self._waiter is not None:  # an upstream that takes a long body is not silent
            self.deadline_s = self._loop.time() + self.idle_s

    def connection_lost(self, exc: Exception | None) -> None:
        if self._failure is None:
            reason = explain(exc) if exc else self._close_answer()
            self._failure = UpstreamConnectionError(upstream=self._upstream, reason=reason)
        self._unsent = _NOTHING
        self.lost.set_result(None)
        self._on_lost(self)
        self._wake()

    @property
    def _wire(self) -> asyncio.Transport:
        if self._transport is None:
            raise RuntimeError("the connection has not been made")
        return self._transport

    def _close_answer(self) -> str:
        """The upstream has closed in order; why there is nothing more. An answer without a length is whole by that."""
        try:
            self._answers.close()
        except CutError as error:
            return str(error)
        return "it was closed"

    def _send_on(self) -> None:
        while self._unsent and self._is_writable and not self._wire.is_closing():
            self._wire.write(self._unsent[:WRITE_BYTES])
            self._unsent = self._unsent[WRITE_BYTES:]

    async def _wait(self) -> None:
        """Until something has changed. Raises what the connection has ended by."""
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        self.deadline_s = self._loop.time() + self.idle_s
        self._sweeper.note(self.deadline_s)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self.deadline_s = math.inf

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def explain(error: Exception) -> str:
    """Why a connection failed, in the system's words, which are the same on any event loop."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
