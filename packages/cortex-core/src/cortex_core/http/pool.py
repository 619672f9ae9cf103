# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain HTTP/1.1 to one endpoint, on TCP or a unix socket, over connections that are kept for the next request.

No more than that is done here, which is why it is cheap: an `https` endpoint is for `session`.
"""

import asyncio
import math
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

from cortex_core.errors import UpstreamConnectionError, UpstreamProtocolError
from cortex_core.http.address import Address
from cortex_core.http.connection import Connection, explain
from cortex_core.http.headers import Headers, is_event_stream
from cortex_core.http.sweeper import Sweeper

# Shorter than the server keeps idle connections, or a request could meet one that is just being closed.
KEEP_IDLE_S = 15.0
CONNECT_S = 5.0
# To ask these twice is as good as once (RFC 9110, section 9.2.2). A prompt must never be answered twice.
_REPEATABLE = ("GET", "HEAD")
_WITH_BODY = ("POST", "PUT", "PATCH")
_CLOSED = "the client was closed"


class Pool:
    """The connections to one endpoint, without a limit. The last one used is used next; the others may then end.

    Args:
        upstream: what errors call it.
        address: where it is.
        headers: sent with every request.
        connect_s: the longest that a connection may take to come about.
        keep_idle_s: how long an idle one is kept.
    """

    def __init__(
        self,
        upstream: str,
        address: Address,
        headers: Headers,
        *,
        connect_s: float = CONNECT_S,
        keep_idle_s: float = KEEP_IDLE_S,
    ) -> None:
        self.upstream = upstream
        self._address = address
        self._fixed = _write_fields([(b"host", address.netloc.encode()), *headers])
        self._fixed_lines = 1 + len(headers)
        self._connect_s = connect_s
        self._keep_idle_s = keep_idle_s
        self._all: set[Connection] = set()
        self._idle: list[Connection] = []  # the last one used is the last
        self._sweeper = Sweeper(self._sweep)
        self._is_closed = False

    def open(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes | None,
        idle_s: float,
        head_s: float | None = None,
    ) -> "PooledReply":
        """As `Client.open`."""
        return PooledReply(
            self, method, self._write_head(method, path, headers, body), body, idle_s, head_s
        )

    async def close(self) -> None:
        """Close all connections; requests in flight fail."""
        self._is_closed = True
        for connection in self._all:
            connection.abort(_CLOSED)
        self._sweeper.close()
        if self._all:
            await asyncio.wait([connection.lost for connection in self._all])

    def take(self) -> Connection | None:
        """An idle connection; None: there is none that can be used."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
            connection.abort("it was idle for too long")
        return None

    def give_back(self, connection: Connection) -> None:
        """Its request is over. It is kept if its answer was taken to the last byte, else closed at once."""
        if connection.is_done and not self._is_closed:
            self._idle.append(connection)
            connection.rest(asyncio.get_running_loop().time() + self._keep_idle_s)
        else:
            connection.abort("its request has ended")

    async def connect(self) -> Connection:
        """A new connection. Raises UpstreamConnectionError."""
        if self._is_closed:
            raise self._failure(_CLOSED)
        connection = Connection(self.upstream, self._sweeper, self._note_lost)
        try:
            async with asyncio.timeout(self._connect_s):
                await self._dial(connection)
        except TimeoutError:
            raise self._failure(f"no connection within {self._connect_s:.0f} s") from None
        except (OSError, UnicodeError) as error:
            raise self._failure(explain(error)) from None
        if not connection.lost.done():
            self._all.add(connection)
        if self._is_closed:
            connection.abort(_CLOSED)
        return connection

    def _dial(self, connection: Connection) -> Coroutine[Any, Any, object]:
        loop, address = asyncio.get_running_loop(), self._address
        if address.port is None:
            return loop.create_unix_connection(lambda: connection, address.host)
        return loop.create_connection(lambda: connection, address.host, address.port)

    def _failure(self, reason: str) -> UpstreamConnectionError:
        return UpstreamConnectionError(upstream=self.upstream, reason=reason)

    def _note_lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self, now_s: float) -> float:
        for connection in self._all:
            if connection.deadline_s <= now_s:
                connection.expire()
        return min((connection.deadline_s for connection in self._all), default=math.inf)

    def _write_head(self, method: str, path: str, headers: Headers, body: bytes | None) -> bytes:
        target = f"{self._address.prefix}{path}".encode()
        has_length = body is not None or method in _WITH_BODY
        length = b"content-length: %d\r\n" % len(body or b"") if has_length else b""
        head = b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % (
            method.encode(),
            target,
            self._fixed,
            _write_fields(headers),
            length,
        )
        lines = self._fixed_lines + len(headers) + has_length + 2
        # A line more could be a header, or a request, that nobody meant to send.
        if b" " in target or not head.count(b"\r") == head.count(b"\n") == lines:
            reason = "the request has a space or a line's end where none may be"
            raise UpstreamProtocolError(upstream=self.upstream, reason=reason)
        return head


def _write_fields(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in headers])


class PooledReply:
    """One request and, within its context, its answer (`Reply`).

    Attributes:
        status: HTTP status.
        headers: as they came.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_head",
        "_head_s",
        "_idle_s",
        "_method",
        "_pool",
        "headers",
        "status",
    )

    def __init__(
        self,
        pool: Pool,
        method: str,
        head: bytes,
        body: bytes | None,
        idle_s: float,
        head_s: float | None,
    ) -> None:
        self.status = 0
        self.headers: Headers = []
        self._pool = pool
        self._method = method
        self._head = head
        self._body = body or b""
        self._idle_s = idle_s
        self._head_s = head_s or idle_s
        self._connection: Connection | None = None

    @property
    def is_event_stream(self) -> bool:
        return is_event_stream(self.headers)

    def read(self) -> Coroutine[Any, Any, bytes]:
        if self._connection is None:  # it may be another request's by now
            reason = "its answer was closed"
            raise UpstreamConnectionError(upstream=self._pool.upstream, reason=reason)
        return self._connection.read()

    async def __aenter__(self) -> "PooledReply":
        """Send the request, and read the answer's head."""
        kept = self._pool.take()
        if kept is not None:
            try:
                return await self._ask(kept)
            except UpstreamConnectionError:
                # It was being closed while the request was under way.
                if kept.has_heard or self._method not in _REPEATABLE:
                    raise
        return await self._ask(await self._pool.connect())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Done with it. Leaving early closes the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection)

    async def _ask(self, connection: Connection) -> "PooledReply":
        try:
            connection.send(self._method, self._head, self._body, self._head_s)
            self.status, self.headers = await connection.head()
            connection.idle_s = self._idle_s
        except BaseException:
            connection.abort("its request has ended")
            raise
        self._connection = connection
        return self
