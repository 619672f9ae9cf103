# SPDX-License-Identifier: GPL-3.0-or-later
"""One request and its answer, over ASGI."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any

from cortex_core import anthropic, errors, openai, wire
from cortex_core.errors import CortexError, RequestTimeoutError, RequestTooLargeError
from cortex_core.http import headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MIB = 1024 * 1024
# A client that sends too much is read on for this long past the limit, or it would see a reset
# connection where the 413 is; the bytes are dropped.
DRAIN_MIB = 512
# The longest silence within a body. Long for a bad network, and short for what is held meanwhile.
BODY_IDLE_S = 60.0
# Of our own server, in a scope's `extensions`: takes what to call when the client leaves, or None to call nothing any more.
ON_LEAVE = "cortex.on_leave"


class ClientGoneError(Exception):
    """The client left before it had its answer. Never sent to anybody."""


class Exchange:
    """One request and its answer.

    Attributes:
        request_id: the client's, where it sent a sane one, else ours; goes out in every answer.
        status: of the answer; None: it has not begun.
        notes: fields for the one log line of this request.
    """

    __slots__ = (
        "_gone",
        "_receive",
        "_send",
        "bytes_out",
        "notes",
        "request_id",
        "scope",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._gone = False
        self.request_id = request_id
        self.status: int | None = None
        self.bytes_out = 0
        self.notes: dict[str, Any] = {}

    @property
    def path(self) -> str:
        path: str = self.scope["path"]
        return path

    @property
    def method(self) -> str:
        method: str = self.scope["method"]
        return method

    @property
    def client_gone(self) -> bool:
        """Whether the client was seen to leave before the answer was complete."""
        return self._gone

    def header(self, name: bytes) -> bytes | None:
        """The first value of a request header, by its lower-case name; None: not sent."""
        return headers.find(self.scope["headers"], name)

    async def read_body(self, limit_bytes: int, idle_s: float = BODY_IDLE_S) -> bytes:
        """The whole request body.

        Raises:
            RequestTimeoutError: no more of it came for `idle_s` seconds.
            RequestTooLargeError: it is longer than the limit; the rest was read and dropped.
            ClientGoneError: the client left while sending.
        """
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive_within(idle_s)
            if message["type"] == "http.disconnect":
                raise self._lose()
            part: bytes = message.get("body", b"")
            size += len(part)
            if size <= limit_bytes:
                parts.append(part)
            elif size > limit_bytes + DRAIN_MIB * MIB:
                break
            if not message.get("more_body", False):
                break
        if size > limit_bytes:
            raise RequestTooLargeError(limit_mb=limit_bytes // MIB)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _receive_within(self, idle_s: float) -> Message:
        try:
            async with asyncio.timeout(idle_s):
                return await self._receive()
        except TimeoutError:
            raise RequestTimeoutError(idle_s=idle_s) from None

    async def while_here(self, work: Awaitable[None]) -> None:
        """Do `work`; it is cancelled as soon as the client leaves.

        Raises:
            ClientGoneError: the client left first. `work` has ended by then, its `finally` blocks included.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - we are a coroutine
        cancelled_before = task.cancelling()
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                task.cancel()

        try:
            with self._telling(leave):
                await work
        except asyncio.CancelledError:
            if not left:
                raise
        finally:
            if left:
                await self._settle(task, cancelled_before)
        if left:
            raise self._lose()

    @contextlib.contextmanager
    def _telling(self, leave: Callable[[], None]) -> Iterator[None]:
        """Call `leave` when the client leaves. Our own server calls it; of any other one it must be awaited."""
        tell = self.scope["extensions"].get(ON_LEAVE)
        if tell is not None:
            tell(leave)
            try:
                yield
            finally:
                tell(None)
            return
        watching = asyncio.ensure_future(self._until_gone())
        watching.add_done_callback(lambda ended: None if ended.cancelled() else leave())
        try:
            yield
        finally:
            watching.cancel()

    async def _settle(self, task: asyncio.Task[Any], cancelled_before: int) -> None:
        # Work that ended in the same moment leaves the cancellation to whatever waits next: that is here.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        if task.uncancel() > cancelled_before:  # somebody else wants the end as well
            raise asyncio.CancelledError

    async def _until_gone(self) -> None:
        # What is left of a body is taken and dropped: a server that cannot hand it over would wait for ever.
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Send status and headers; ours are added."""
        self.status = status
        number = self.request_id.encode()
        own = [(wire.REQUEST_ID.encode(), number)]
        if self._speaks_anthropic:
            own.append((b"request-id", number))  # where its clients look for it
        head = {"type": "http.response.start", "status": status, "headers": [*fields, *own]}
        try:
            await self._send(head)
        except OSError:
            raise self._lose() from None

    async def write(self, data: bytes) -> None:
        """Send some of the body now.

        Raises:
            ClientGoneError: the connection is broken; so `start` and `end` do.
        """
        self.bytes_out += len(data)
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except (
            OSError
        ):  # a network that swallows packets ends in ETIMEDOUT, which is no ConnectionError
            raise self._lose() from None

    async def end(self, data: bytes = b"") -> None:
        """Send the last of the body."""
        self.bytes_out += len(data)
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": False})
        except OSError:
            raise self._lose() from None

    def _lose(self) -> ClientGoneError:
        self._gone = True
        return ClientGoneError()

    async def answer(
        self,
        status: int,
        body: bytes,
        fields: Iterable[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),),
    ) -> None:
        """Send a whole answer."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*fields, length])
        await self.end(body)

    async def fail(self, error: CortexError) -> None:
        """Send an error as a whole answer, in the dialect of the path. Only before the answer began."""
        status, body = self.error_body(error)
        fields = [(b"content-type", b"application/json")]
        if error.retry_after_s is not None:
            # Whole seconds, and never 0: RFC 9110 knows no fractions, and clients read 0 as "at once".
            fields.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
        if allowed := error.facts.get("allowed"):
            fields.append((b"allow", str(allowed).encode()))
        await self.answer(status, body, fields)

    @property
    def _speaks_anthropic(self) -> bool:
        if self.path.startswith(anthropic.PATHS):
            return True
        has_version = self.header(b"anthropic-version") is not None
        return has_version and not self.path.startswith(openai.PATHS)

    def error_body(self, error: CortexError) -> tuple[int, bytes]:
        """Status and envelope of an error in the dialect that this request speaks."""
        if self._speaks_anthropic:
            status = anthropic.status_of(error.status)
            return status, anthropic.write_error(error, self.request_id)
        return error.status, errors.write_openai(error)
