# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask an upstream over HTTP: `pool` asks plain endpoints and unix sockets, `session` all others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import msgspec

from cortex_core.errors import UpstreamProtocolError, UpstreamTimeoutError
from cortex_core.http.address import read_address
from cortex_core.http.headers import Headers, read_retry_after
from cortex_core.http.pool import KEEP_IDLE_S, Pool

T = TypeVar("T")

_ENCODE = msgspec.json.Encoder()


class RefusedError(Exception):
    """The upstream answered an error of its own, whole and well-formed.

    Attributes:
        status: HTTP status.
        code: its `error.code`; None: its body has none.
        message: its `error.message`, or the start of its body.
        facts: its whole `error` object.
        retry_after_s: seconds after which it may be asked again; None: it does not say so.
    """

    def __init__(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        self.status = status
        self.retry_after_s = read_retry_after(headers or [])
        self.facts = _error_of(body)
        code = self.facts.get("code")
        self.code = code if isinstance(code, str) else None
        self.message = str(self.facts.get("message") or body[:300].decode("utf-8", "replace"))
        super().__init__(f"{status}: {self.message}")


class Reply(Protocol):
    """An upstream's answer, its head read and its body still coming."""

    status: int
    headers: Headers

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is Server-Sent Events."""

    async def read(self) -> bytes:
        """What has come since, or the next that comes; empty at the end.

        Raises:
            UpstreamConnectionError: the upstream cut the connection.
            UpstreamTimeoutError: it was silent for longer than the idle timeout.
        """


class Whole:
    """An answer that was read to its end already, as one that is still to be read. Fulfils `Reply`."""

    is_event_stream = False

    def __init__(self, reply: Reply, body: bytes) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._unread = [body]

    async def read(self) -> bytes:
        return self._unread.pop() if self._unread else b""


async def read_all(reply: Reply) -> bytes:
    """The whole body. Raises as `Reply.read` does."""
    parts = [part async for part in _parts(reply)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _parts(reply: Reply) -> AsyncIterator[bytes]:
    while part := await reply.read():
        yield part


class Connections(Protocol):
    """The connections to one endpoint, and requests on them. What `Client` stands on."""

    def open(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes | None,
        idle_s: float,
        head_s: float | None = None,
    ) -> AbstractAsyncContextManager[Reply]:
        """As `Client.open`."""

    async def close(self) -> None:
        """Close all connections; requests in flight fail."""


def build_connections(
    endpoint: str, headers: Headers, keep_idle_s: float = KEEP_IDLE_S
) -> Connections:
    """Those that know how to speak to an endpoint. `headers` are sent with every request."""
    address = read_address(endpoint)
    if address is None:
        # aiohttp takes a third of a daemon's start, which most daemons have no need of.
        from cortex_core.http.session import Session

        return Session(endpoint, headers, keep_idle_s=keep_idle_s)
    return Pool(endpoint, address, headers, keep_idle_s=keep_idle_s)


class Client:
    """Requests to one endpoint, over a pool of connections that has no limit: admission is not its job.

    Args:
        endpoint: `http://host:port`, `https://…`, or `unix:/path`.
        idle_timeout_s: the longest silence between two reads; there is no total timeout.
        headers: sent with every request.
        keep_idle_s: how long an idle connection is kept for the next request; shorter than the other end keeps it.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        idle_timeout_s: float = 300,
        headers: Headers | None = None,
        keep_idle_s: float = KEEP_IDLE_S,
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._idle_timeout_s = idle_timeout_s
        self._connections = build_connections(self.endpoint, headers or [], keep_idle_s)

    def open(
        self,
        method: str,
        path: str,
        *,
        headers: Headers | None = None,
        body: bytes | None = None,
        idle_timeout_s: float | None = None,
        head_timeout_s: float | None = None,
    ) -> AbstractAsyncContextManager[Reply]:
        """Send a request; the context holds its answer. Leaving early closes the connection.

        What frames a request (`host`, `content-length`, `connection` and their like) is not among `headers`.
        A GET that meets a connection just being closed is sent once more; a POST never is.
        `head_timeout_s` is the longest silence before the answer begins; None: as any other.

        Raises:
            UpstreamConnectionError, UpstreamTimeoutError, UpstreamProtocolError: the upstream's fault.
        """
        idle_s = idle_timeout_s or self._idle_timeout_s
        return self._connections.open(method, path, headers or [], body, idle_s, head_timeout_s)

    async def ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        body: object = None,
        *,
        timeout_s: float = 5.0,
    ) -> T:
        """One control-plane call: JSON in, JSON out, within a total time.

        Raises:
            RefusedError: the upstream answered an error.
            UpstreamConnectionError, UpstreamTimeoutError, UpstreamProtocolError: as `open`.
        """
        data = None if body is None else _ENCODE.encode(body)
        fields = [(b"content-type", b"application/json")] if data is not None else []
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.open(
                    method, path, headers=fields, body=data, idle_timeout_s=timeout_s
                ) as reply,
            ):
                raw = await read_all(reply)
        except TimeoutError:
            raise UpstreamTimeoutError(upstream=self.endpoint, idle_s=timeout_s) from None
        if reply.status >= 300:
            raise RefusedError(reply.status, raw, reply.headers)
        try:
            return msgspec.json.decode(raw, type=answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamProtocolError(upstream=self.endpoint, reason=str(error)) from None

    async def close(self) -> None:
        """Close all connections; requests in flight fail with UpstreamConnectionError."""
        await self._connections.close()


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        error = msgspec.json.decode(body)["error"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {"message": str(error)}
