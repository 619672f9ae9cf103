# SPDX-License-Identifier: GPL-3.0-or-later
"""The test kit: values to start from, an ASGI application driven or really served, a scripted upstream."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from cortex_core.discovery import Device, Discovery
from cortex_core.http import server
from cortex_core.http.exchange import Message, Receive, Scope, Send
from cortex_core.http.headers import Headers, find
from cortex_core.http.server import AsgiApp
from cortex_core.node import ModelState


def make_device(index: int = 0, vram_total_mb: int = 24_000) -> Device:
    """A GPU."""
    return Device(index=index, uuid=f"GPU-{index}", name="Test GPU", vram_total_mb=vram_total_mb)


def make_discovery(*devices: Device, harnesses: tuple[str, ...] = ("vllm", "echo")) -> Discovery:
    """A machine with these devices."""
    return Discovery(
        hostname="test",
        os="Linux",
        kernel="6.1",
        devices=list(devices),
        harnesses=list(harnesses),
        host_ram_mb=64_000,
    )


def make_state(model_id: str, status: str = "loaded", **fields: Any) -> ModelState:
    """A resident model."""
    return ModelState(id=model_id, harness="echo", status=status, **fields)


class Collected:
    """What an application sent: each message, and when it came (monotonic seconds)."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.times_s: list[float] = []

    @property
    def status(self) -> int:
        """HTTP status of the answer."""
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> Headers:
        """Headers of the answer."""
        return list(self.messages[0]["headers"])

    @property
    def chunks(self) -> list[bytes]:
        """The body's parts that are not empty, as they were sent."""
        return [m["body"] for m in self.messages[1:] if m.get("body")]

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        """The whole body, decoded."""
        return msgspec.json.decode(self.body)

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header."""
        return find(self.headers, name)


async def collect(
    app: AsgiApp,
    method: str,
    path: str,
    *,
    query: bytes = b"",
    body: bytes = b"",
    headers: Headers | None = None,
    leave: asyncio.Event | None = None,
    on_message: Callable[[Message], None] | None = None,
) -> Collected:
    """Drive an application with one request; the client leaves when `leave` is set."""
    collected = Collected()
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    left = leave or asyncio.Event()

    async def receive() -> Message:
        if pending:
            return pending.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        collected.messages.append(message)
        collected.times_s.append(time.monotonic())
        if on_message:
            on_message(message)

    await app(_scope(method, path, query, headers or []), receive, send)
    return collected


def _scope(method: str, path: str, query: bytes, headers: Headers) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.1"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "extensions": {},
    }


@asynccontextmanager
async def serving(app: AsgiApp, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve an application for real, on a free loopback port or `unix:/path`; yields its endpoint."""
    sock = server.bind(address)
    endpoint = address
    if sock.family != socket.AF_UNIX:
        host, port = sock.getsockname()[:2]
        endpoint = f"http://{host}:{port}"
    stop = asyncio.Event()
    task = asyncio.create_task(server.serve(app, sock, stop, grace_s=0.2))
    try:
        yield endpoint
    finally:
        stop.set()
        await task


async def read_body(receive: Receive) -> bytes:
    """A request's body, for a hand-written application; what there was of it, where the client left."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body


class Scripted:
    """An upstream that answers as told, and records what it was asked and who left.

    Attributes:
        script: called per request with its number; returns (status, headers, list of chunks). A chunk of
            None means: wait until the client leaves.
        asked: (method, path, headers, body) of each request.
        left: set when a client left before its answer was complete.
    """

    def __init__(self, script: Callable[[int], tuple[int, Headers, list[bytes | None]]]) -> None:
        self.script = script
        self.asked: list[tuple[str, str, Headers, bytes]] = []
        self.left = asyncio.Event()
        self.began = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            raise RuntimeError("HTTP only")
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.asked.append((scope["method"], scope["path"], list(scope["headers"]), body))
        status, headers, chunks = self.script(len(self.asked) - 1)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for chunk in chunks:
            if chunk is None:
                self.began.set()
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.left.set()
                return
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
