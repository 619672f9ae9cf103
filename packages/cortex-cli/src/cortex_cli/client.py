# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a running gateway, as typed calls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import msgspec

from cortex_cli.view import Fleet
from cortex_core.errors import UpstreamProtocolError
from cortex_core.http.client import Client

ASK_S = 10.0
# Loads and drains are bounded by the gateway, which says so when they take too long.
ORDER_S = 3600.0


_READ = msgspec.json.Decoder(Fleet)


@asynccontextmanager
async def open_gateway(endpoint: str, key: str | None = None) -> AsyncIterator["Gateway"]:
    """A gateway to ask, for as long as the context lasts. `key`: of its operators; None: none is sent."""
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    client = Client(endpoint, headers=headers)
    try:
        yield Gateway(client)
    finally:
        await client.close()


class Gateway:
    """Calls to one gateway. Each raises as `Client.ask` does."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def fleet_raw(self) -> bytes:
        """The fleet as JSON, everything that the gateway tells."""
        return bytes(await self._client.ask("GET", "/fleet", msgspec.Raw, timeout_s=ASK_S))

    async def request_raw(self, request_id: str) -> bytes:
        """What became of a request, as JSON."""
        path = f"/fleet/requests/{quote(request_id)}"
        return bytes(await self._client.ask("GET", path, msgspec.Raw, timeout_s=ASK_S))

    async def order_raw(self, path: str, body: object) -> bytes:
        """Have something done, and return the answer as JSON when it is."""
        answer = await self._client.ask("POST", path, msgspec.Raw, body, timeout_s=ORDER_S)
        return bytes(answer)


def read_fleet(raw: bytes, endpoint: str) -> Fleet:
    """What was told of a fleet. Raises UpstreamProtocolError: no gateway says that."""
    try:
        return _READ.decode(raw)
    except msgspec.ValidationError as error:
        raise UpstreamProtocolError(upstream=endpoint, reason=str(error)) from None
