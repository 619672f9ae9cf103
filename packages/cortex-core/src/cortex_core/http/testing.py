# SPDX-License-Identifier: GPL-3.0-or-later
"""Raw connections to a server, and applications that answer as told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from cortex_core.http.exchange import Message, Receive, Scope, Send
from cortex_core.http.server import AsgiApp
from cortex_core.testing import serving

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


# A request after whose answer the client wants the end.
CLOSE = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None: the client left."""
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return body


def answer(body: bytes, status: int = 200, *fields: tuple[bytes, bytes]) -> list[Message]:
    """A whole answer, as ASGI's messages."""
    return [
        {"type": "http.response.start", "status": status, "headers": list(fields)},
        {"type": "http.response.body", "body": body},
    ]


async def tell(scope: Scope, receive: Receive, send: Send) -> None:
    """What was asked, as JSON."""
    if scope["type"] != "http":
        return
    body = await read_body(receive)
    if body is None:
        return
    asked = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "version": scope["http_version"],
        "headers": [(n.decode(), v.decode("latin-1")) for n, v in scope["headers"]],
        "body": body.decode("latin-1"),
    }
    for message in answer(msgspec.json.encode(asked)):
        await send(message)


def sending(*messages: Message) -> AsgiApp:
    """An application that takes the body and sends these."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await read_body(receive)
            for message in messages:
                await send(message)

    return app


@asynccontextmanager
async def connected(app: AsgiApp) -> AsyncIterator[Streams]:
    """A connection to an application that is really served."""
    async with serving(app) as endpoint, connect(endpoint) as streams:
        yield streams


@asynccontextmanager
async def connect(endpoint: str) -> AsyncIterator[Streams]:
    """A connection, for five seconds at most."""
    host, port = endpoint.removeprefix("http://").split(":")
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield reader, writer
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head, and the body that its content-length tells."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    return head, await reader.readexactly(int(length.split(b":")[1]))


async def ask(app: AsgiApp, request: bytes) -> bytes:
    """All that comes back for these bytes, until the connection is closed."""
    async with connected(app) as (reader, writer):
        writer.write(request)
        return await reader.read()
