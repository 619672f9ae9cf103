# SPDX-License-Identifier: GPL-3.0-or-later
"""The test kit: a hub on loopback, which answers as the Hugging Face Hub does, and fails as it is told."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import msgspec

from cortex_core.http.exchange import Receive, Scope, Send
from cortex_core.testing import serving

# Larger files are told as large ones are: by SHA-256.
LARGE_BYTES = 1000
_CHUNK_BYTES = 64 * 1024
_LISTING = re.compile(r"/api/models/(.+)/revision/[^/]+")
_FILE = re.compile(r"/(.+)/resolve/([^/]+)/(.+)")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `start` is where its range begins; `token` what its Authorization holds."""

    method: str
    path: str
    start: int = 0
    token: str | None = None


class Fault(msgspec.Struct, kw_only=True):
    """What goes wrong with requests whose path ends in `path`, `times` times.

    Attributes:
        method: of the requests; None: any.
        status: to answer with, and `code` as the hub's X-Error-Code.
        cut_after: bytes of the body after which the connection is cut.
        pause_after: bytes of the body after which nothing more comes.
        content: sent instead of the file's own.
        ignores_range: whether a range is answered with the whole.
    """

    path: str
    times: int = 1
    method: str | None = None
    status: int | None = None
    code: str | None = None
    cut_after: int | None = None
    pause_after: int | None = None
    content: bytes | None = None
    ignores_range: bool = False


class FakeHub:
    """Repositories by name, each a mapping of file names to contents.

    Attributes:
        asked: every request, in order.
        sent: bytes of each file that left, by path.
        faults: what goes wrong.
        token: that every request must have; None: none.
        elsewhere: where large files are redirected to, as a CDN is; None: they are answered here.
        tells_lengths: whether answers have a Content-Length.
        lists_sizes: whether listings tell how large files are.
        paused: set when a body stands still.
        going_on: set it, and it goes on.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.cards: dict[str, dict[str, Any]] = {}
        self.asked: list[Asked] = []
        self.sent: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.token: str | None = None
        self.elsewhere: str | None = None
        self.tells_lengths = True
        self.lists_sizes = True
        self.paused = asyncio.Event()
        self.going_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        path = unquote(scope["path"])
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        span = re.match(r"bytes=(\d+)-", headers.get("range", ""))
        start = int(span[1]) if span else 0
        token = headers.get("authorization", "").removeprefix("Bearer ") or None
        self.asked.append(Asked(method=scope["method"], path=path, start=start, token=token))
        fault = self._fault(scope["method"], path)
        if fault and fault.status:
            fields = [(b"x-error-code", fault.code.encode())] if fault.code else []
            await _answer(send, fault.status, fields, b'{"error": "as told"}')
        elif self.token is not None and token != self.token:
            await _answer(send, 401, [], b'{"error": "no token"}')
        elif listing := _LISTING.fullmatch(path):
            await self._list(listing[1], send)
        elif file := _FILE.fullmatch(path):
            await self._serve(scope["method"], path, file, start, fault or Fault(path=""), send)
        else:
            await _answer(send, 404, [], b"")

    def revision(self, repo: str) -> str:
        """The commit that a repository is at."""
        return hashlib.sha1(repr(self.repos[repo]).encode(), usedforsecurity=False).hexdigest()

    def count(self, ending: str, method: str = "GET") -> int:
        """How often paths with this ending were asked for."""
        return sum(a.path.endswith(ending) and a.method == method for a in self.asked)

    def _fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and path.endswith(fault.path) and fault.method in (None, method):
                fault.times -= 1
                return fault
        return None

    async def _list(self, repo: str, send: Send) -> None:
        if repo not in self.repos:
            await _answer(send, 404, [(b"x-error-code", b"RepoNotFound")], b"{}")
            return
        files = self.repos[repo].items()
        info = {
            "id": repo,
            "sha": self.revision(repo),
            "siblings": [self._sibling(name, content) for name, content in files],
            "cardData": self.cards.get(repo),
        }
        await _answer(
            send, 200, [(b"content-type", b"application/json")], msgspec.json.encode(info)
        )

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        size = {"size": len(content)} if self.lists_sizes else {}
        if len(content) <= LARGE_BYTES:
            return {"rfilename": name, "blobId": _etag(content), **size}
        lfs = {"sha256": _etag(content), "size": len(content), "pointerSize": 130}
        return {"rfilename": name, "blobId": "0" * 40, "lfs": lfs, **size}

    async def _serve(
        self, method: str, path: str, file: re.Match[str], start: int, fault: Fault, send: Send
    ) -> None:
        content = self.repos.get(file[1], {}).get(file[3])
        if content is None:
            await _answer(send, 404, [(b"x-error-code", b"EntryNotFound")], b"")
            return
        etag = f'"{_etag(content)}"'.encode()
        fields = [(b"etag", etag), (b"x-repo-commit", file[2].encode())]
        if self.elsewhere and len(content) > LARGE_BYTES:
            fields += [
                (b"location", f"{self.elsewhere}{path}".encode()),
                (b"x-linked-etag", etag),
                (b"x-linked-size", str(len(content)).encode()),
            ]
            await _answer(send, 302, fields, b"")
            return
        body = content if fault.content is None else fault.content
        begin = 0 if fault.ignores_range else start
        if begin and begin >= len(body):
            await _answer(send, 416, [], b"")
            return
        if begin:
            span = f"bytes {begin}-{len(body) - 1}/{len(body)}"
            fields.append((b"content-range", span.encode()))
        if self.tells_lengths:
            fields.append((b"content-length", str(len(body) - begin).encode()))
        status = 206 if begin else 200
        await send({"type": "http.response.start", "status": status, "headers": fields})
        if method == "GET":
            await self._send_body(path, body[begin:], fault, send)
        await send({"type": "http.response.body", "body": b""})

    async def _send_body(self, path: str, body: bytes, fault: Fault, send: Send) -> None:
        stop = fault.cut_after if fault.pause_after is None else fault.pause_after
        stop = len(body) if stop is None else stop
        for at in range(0, stop, _CHUNK_BYTES):
            part = body[at : min(stop, at + _CHUNK_BYTES)]
            self.sent[path] = self.sent.get(path, 0) + len(part)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if fault.cut_after is not None:
            raise ConnectionAbortedError("cut, as told")
        if fault.pause_after is not None:
            self.paused.set()
            await self.going_on.wait()
            await send({"type": "http.response.body", "body": body[stop:], "more_body": True})


@asynccontextmanager
async def open_hub() -> AsyncIterator[tuple[FakeHub, str]]:
    """A hub on a free loopback port, and its endpoint."""
    hub = FakeHub()
    async with serving(hub) as endpoint:
        try:
            yield hub, endpoint
        finally:
            hub.going_on.set()


def make_model(size_bytes: int = 3000) -> dict[str, bytes]:
    """The files of a model that looks whole; its weights are a valid file of one tensor, of about this size."""
    data = bytes(index * 7 % 251 for index in range(size_bytes))
    header = msgspec.json.encode(
        {"a": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}
    )
    return {
        "config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
        "tokenizer.json": b'{"model": {}}',
        "tokenizer_config.json": b"{}",
        "model.safetensors": len(header).to_bytes(8, "little") + header + data,
        "README.md": b"# Not needed",
    }


def _etag(content: bytes) -> str:
    if len(content) > LARGE_BYTES:
        return hashlib.sha256(content).hexdigest()
    head = f"blob {len(content)}\0".encode()
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


async def _answer(send: Send, status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fields, *length]})
    await send({"type": "http.response.body", "body": body})
