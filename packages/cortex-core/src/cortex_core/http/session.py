# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP to any endpoint, `https` and remote ones above all. The only importer of aiohttp."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import yarl

from cortex_core.errors import (
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from cortex_core.http.headers import Headers, is_event_stream
from cortex_core.http.pool import CONNECT_S, KEEP_IDLE_S

MAX_WRITE_BYTES = 1024 * 1024
_NO_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class Session:
    """The connections to one endpoint, without a limit.

    Args:
        endpoint: `https://host:port` and the like; never a unix socket.
        headers: sent with every request.
        keep_idle_s: how long an idle one is kept.
    """

    def __init__(
        self, endpoint: str, headers: Headers, *, keep_idle_s: float = KEEP_IDLE_S
    ) -> None:
        self._endpoint = endpoint
        self._headers = headers
        self._keep_idle_s = keep_idle_s
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes | None,
        idle_s: float,
        head_s: float | None = None,
    ) -> AsyncIterator["SessionReply"]:
        """As `Client.open`."""
        head_s = head_s or idle_s
        with self.mapped(head_s):
            response = await self._ensure_session().request(
                method,
                self._url(path),
                data=_payload(body),
                headers=[(n.decode(), v.decode("latin-1")) for n, v in [*self._headers, *headers]],
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=head_s),
                allow_redirects=False,
            )
        try:
            yield SessionReply(response, self, idle_s)
        finally:
            response.close()

    async def close(self) -> None:
        """Close all connections; requests in flight fail."""
        self._is_closed = True
        if self._session:
            await self._session.close()

    @contextmanager
    def mapped(self, idle_s: float) -> Iterator[None]:
        """Give aiohttp's exceptions as ours. A test walks its exceptions and holds each to one of these."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError:  # nothing was sent: another replica may be asked
            reason = f"no connection within {CONNECT_S:.0f} s"
            raise UpstreamConnectionError(upstream=self._endpoint, reason=reason) from None
        except (aiohttp.ServerTimeoutError, TimeoutError):
            raise UpstreamTimeoutError(upstream=self._endpoint, idle_s=idle_s) from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UpstreamConnectionError(upstream=self._endpoint, reason=reason) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise UpstreamProtocolError(upstream=self._endpoint, reason=str(error)) from None

    def _ensure_session(self) -> aiohttp.ClientSession:
        # Made on first use: aiohttp wants a running loop.
        if self._is_closed:
            raise UpstreamConnectionError(upstream=self._endpoint, reason="the client was closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, limit_per_host=0, keepalive_timeout=self._keep_idle_s
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=_NO_AUTO_HEADERS,
            )
        return self._session

    def _url(self, path: str) -> yarl.URL:
        return yarl.URL(self._endpoint + path, encoded=True)


class SessionReply:
    """An answer (`Reply`), as aiohttp gives it.

    Attributes:
        status: HTTP status.
        headers: as they came.
    """

    def __init__(self, response: aiohttp.ClientResponse, session: Session, idle_s: float) -> None:
        self.status = response.status
        self.headers: Headers = list(response.raw_headers)
        self._response = response
        self._session = session
        self._idle_s = idle_s

    @property
    def is_event_stream(self) -> bool:
        return is_event_stream(self.headers)

    async def read(self) -> bytes:
        with self._session.mapped(self._idle_s):
            # Where a chunk is none, aiohttp forgets who waits for it, and its own timeout.
            async with asyncio.timeout(self._idle_s):
                return await self._response.content.readany()


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    # aiohttp writes bytes in one piece, and warns that a large one holds up the loop; a file it writes in parts.
    return io.BytesIO(body) if body and len(body) > MAX_WRITE_BYTES else body
