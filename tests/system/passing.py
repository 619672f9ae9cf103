# SPDX-License-Identifier: GPL-3.0-or-later
"""An upstream that passes everything on to a neuron, and records what clients' requests have become by then."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cortex_core.http.client import Client
from cortex_core.testing import read_body, serving


class Passing:
    """Stands between a gateway and a neuron.

    Attributes:
        asked: the bodies of requests for answers.
    """

    def __init__(self, endpoint: str) -> None:
        self.asked: list[Any] = []
        self._client = Client(endpoint)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = await read_body(receive)
        if scope["path"].startswith("/v1/"):
            self.asked.append(json.loads(body))
        passing = asyncio.ensure_future(self._pass(scope, body, send))
        leaving = asyncio.ensure_future(receive())
        await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        both = {passing, leaving}
        for task in both:
            task.cancel()
        await asyncio.wait(both)
        if not passing.cancelled():
            passing.result()

    async def _pass(self, scope: Any, body: bytes, send: Any) -> None:
        fields = [field for field in scope["headers"] if field[0] != b"content-length"]
        opening = self._client.open(
            scope["method"], scope["path"], headers=fields, body=body or None
        )
        async with opening as reply:
            kept = [f for f in reply.headers if f[0].lower() in (b"content-type", b"retry-after")]
            await send({"type": "http.response.start", "status": reply.status, "headers": kept})
            while part := await reply.read():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def close(self) -> None:
        await self._client.close()

    @property
    def images(self) -> int:
        """Requests with a picture of a pixel."""
        return sum("data:image/png;base64,iVBORw0KGgo" in json.dumps(asked) for asked in self.asked)

    @property
    def schemas(self) -> list[Any]:
        """The forms of answers that were asked for: of chat, or of Responses; None: any JSON."""
        return [schema for asked in self.asked for schema in _schemas(asked)]


def _schemas(asked: Any) -> list[Any]:
    if "response_format" in asked:
        return [asked["response_format"].get("json_schema", {}).get("schema")]
    form = (asked.get("text") or {}).get("format")
    return [form.get("schema")] if form else []


@asynccontextmanager
async def passing_to(neuron: Any) -> AsyncIterator[tuple[Passing, str]]:
    """What stands before a neuron, and where it is asked."""
    made = Passing(neuron.endpoint)
    async with serving(made) as endpoint:
        yield made, endpoint
    await made.close()
