# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask an upstream over HTTP, on TCP or a unix socket. The only importer of aiohttp."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec
import yarl

from cortex_core.errors import (
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from cortex_core.http.headers import Headers, find

T = TypeVar("T")

# Shorter than the server keeps idle connections, or a request could meet one that is just being closed.
KEEP_IDLE_S = 15.0
CONNECT_S = 5.0
MAX_WRITE_BYTES = 1024 * 1024
_NO_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_ENCODE = msgspec.json.Encoder()


class RefusedError(Exception):
    """The upstream answered an error of its own, whole and well-formed.

    Attributes:
        status: HTTP status.
        code: its `error.code`; None: its body has none.
        message: its `error.message`, or the start of its body.
        facts: its whole `error` object.
    """

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
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


async def read_all(reply: Reply) -> bytes:
    """The whole body. Raises as `Reply.read` does."""
    parts = [part async for part in _parts(reply)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _parts(reply: Reply) -> AsyncIterator[bytes]:
    while part := await reply.read():
        yield part


class Client:
    """Requests to one endpoint, over a pool of connections that has no limit: admission is not its job.

    Args:
        endpoint: `http://host:port`, `https://…`, or `unix:/path`.
        idle_timeout_s: the longest silence between two reads; there is no total timeout.
        headers: sent with every request.
    """

    def __init__(
        self, endpoint: str, *, idle_timeout_s: float = 300, headers: Headers | None = None
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._idle_timeout_s = idle_timeout_s
        self._headers = headers or []
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        headers: Headers | None = None,
        body: bytes | None = None,
        idle_timeout_s: float | None = None,
    ) -> AsyncIterator[Reply]:
        """Send a request; the context holds its answer. Leaving early closes the connection.

        Raises:
            UpstreamConnectionError, UpstreamTimeoutError, UpstreamProtocolError: the upstream's fault.
        """
        idle_s = idle_timeout_s or self._idle_timeout_s
        with self._mapped(idle_s):
            response = await self._ensure_session().request(
                method,
                self._url(path),
                data=_payload(body),
                headers=[
                    (n.decode(), v.decode("latin-1")) for n, v in [*self._headers, *(headers or [])]
                ],
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=idle_s),
                allow_redirects=False,
            )
        try:
            yield _AiohttpReply(response, self, idle_s)
        finally:
            response.close()

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
            raise RefusedError(reply.status, raw)
        try:
            return msgspec.json.decode(raw, type=answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamProtocolError(upstream=self.endpoint, reason=str(error)) from None

    async def close(self) -> None:
        """Close all connections."""
        if self._session:
            await self._session.close()

    def _ensure_session(self) -> aiohttp.ClientSession:
        # Made on first use: aiohttp wants a running loop.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._build_connector(),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=_NO_AUTO_HEADERS,
            )
        return self._session

    def _build_connector(self) -> aiohttp.BaseConnector:
        if self.endpoint.startswith("unix:"):
            return aiohttp.UnixConnector(
                self.endpoint.removeprefix("unix:"), limit=0, keepalive_timeout=KEEP_IDLE_S
            )
        return aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=KEEP_IDLE_S)

    def _url(self, path: str) -> yarl.URL:
        base = "http://engine" if self.endpoint.startswith("unix:") else self.endpoint
        return yarl.URL(base + path, encoded=True)

    @contextmanager
    def _mapped(self, idle_s: float) -> Iterator[None]:
        """Give aiohttp's exceptions as ours. A test walks its exceptions and holds each to one of these."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError:  # nothing was sent: another replica may be asked
            reason = f"no connection within {CONNECT_S:.0f} s"
            raise UpstreamConnectionError(upstream=self.endpoint, reason=reason) from None
        except (aiohttp.ServerTimeoutError, TimeoutError):
            raise UpstreamTimeoutError(upstream=self.endpoint, idle_s=idle_s) from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UpstreamConnectionError(upstream=self.endpoint, reason=reason) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise UpstreamProtocolError(upstream=self.endpoint, reason=str(error)) from None


class _AiohttpReply:
    def __init__(self, response: aiohttp.ClientResponse, client: Client, idle_s: float) -> None:
        self.status = response.status
        self.headers: Headers = list(response.raw_headers)
        self._response = response
        self._client = client
        self._idle_s = idle_s

    @property
    def is_event_stream(self) -> bool:
        declared = find(self.headers, b"content-type") or b""
        return declared.lower().startswith(b"text/event-stream")

    async def read(self) -> bytes:
        with self._client._mapped(self._idle_s):  # noqa: SLF001 - one file, one seam
            return await self._response.content.readany()


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    # aiohttp writes bytes in one piece, and warns that a large one holds up the loop; a file it writes in parts.
    return io.BytesIO(body) if body and len(body) > MAX_WRITE_BYTES else body


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        error = msgspec.json.decode(body)["error"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {"message": str(error)}
