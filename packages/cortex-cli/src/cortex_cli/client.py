# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a running gateway, as typed calls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from cortex_cli.view import Fleet
from cortex_core.errors import UpstreamProtocolError
from cortex_core.http.client import Client

ASK_S = 10.0


_READ = msgspec.json.Decoder(Fleet)


@asynccontextmanager
async def open_gateway(endpoint: str) -> AsyncIterator["Gateway"]:
    """A gateway to ask, for as long as the context lasts."""
    client = Client(endpoint)
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

    async def fleet(self) -> Fleet:
        """The fleet."""
        try:
            return _READ.decode(await self.fleet_raw())
        except msgspec.ValidationError as error:
            raise UpstreamProtocolError(upstream=self._client.endpoint, reason=str(error)) from None
