# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway in this process, before hand-written neurons on real loopback ports."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest

from cortex_core.catalogue import Catalogue, Model
from cortex_core.control import PlanAnswer
from cortex_core.discovery import Discovery
from cortex_core.errors import CortexError, InvalidApiKeyError, write_openai
from cortex_core.http.exchange import Receive, Scope, Send
from cortex_core.http.headers import Headers
from cortex_core.node import Health, ModelActivity, ModelState
from cortex_core.testing import Collected, collect, make_discovery, make_state, serving
from cortex_core.weights import WeightsReport, WeightsState
from cortex_gateway.app import Gateway, open_gateway
from cortex_gateway.config import Config, NeuronSettings
from cortex_gateway.status import CatalogueStatus

SSE: Headers = [(b"content-type", b"text/event-stream")]
JSON: Headers = [(b"content-type", b"application/json")]
WHOLE = b'{"id":"x","model":"m","usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
ENCODE = msgspec.json.encode

Part = bytes | asyncio.Event | None


class FakeNeuron:
    """Answers as told, and records what it was asked.

    Attributes:
        states: what GET /models lists.
        activities: what GET /health says of them.
        loads: bodies of POST /models/load.
        load: called for each of them; what it raises is the answer.
        moves: sleep, wake and unload, and of what; `move` is called for each of them, like `load`.
        plans: bodies of POST /models/plan; `plan` gives the answer.
        asked: path, headers and body of each inference request.
        answer: called with the number of the request; (status, headers, parts). A part that is an Event is waited
            for, None means: until the client leaves.
        down: closes every connection without an answer.
        secret: what must be shown; None: nothing.
        weights: what GET /weights lists.
    """

    def __init__(self, *states: ModelState, found: Discovery | None = None) -> None:
        self.states = {state.id: state for state in states}
        self.activities: list[ModelActivity] = []
        self.found = found or make_discovery(harnesses=("echo",))
        self.health = Health(uptime_secs=1.0)
        self.loads: list[dict[str, Any]] = []
        self.load: Callable[[dict[str, Any]], Awaitable[None]] = self._load
        self.moves: list[tuple[str, str]] = []
        self.move: Callable[[str, str], Awaitable[None]] = self._move
        self.plans: list[dict[str, Any]] = []
        self.plan: Callable[[dict[str, Any]], PlanAnswer] = lambda body: PlanAnswer(
            model_id=body["model_id"], fits=True
        )
        self.asked: list[tuple[str, dict[bytes, bytes], Any]] = []
        self.answer: Callable[[int], tuple[int, Headers, list[Part]]] = lambda n: (
            200,
            JSON,
            [WHOLE],
        )
        self.polls: list[str] = []
        self.control_headers: list[dict[bytes, bytes]] = []
        self.down = False
        self.secret: bytes | None = None
        self.weights: list[WeightsState] = []
        self.began = asyncio.Event()
        self.left = asyncio.Event()

    async def _load(self, body: dict[str, Any]) -> None:
        self.states[body["model_id"]] = make_state(body["model_id"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("HTTP only")
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        shown = dict(scope["headers"]).get(b"authorization")
        if self.down:
            await _answer(send, 500, JSON, b"down")
        elif self.secret is not None and shown != b"Bearer " + self.secret:
            refused = InvalidApiKeyError()
            await _answer(send, refused.status, JSON, write_openai(refused))
        elif scope["path"] == "/weights":  # asked when the gateway has the time
            await _answer(send, 200, JSON, ENCODE(WeightsReport(weights=self.weights)))
        elif scope["method"] == "GET":
            self.polls.append(scope["path"])
            self.control_headers.append(dict(scope["headers"]))
            await _answer(send, 200, JSON, self._told(scope["path"]))
        elif scope["path"] == "/models/load":
            await self._serve_load(json.loads(body), send)
        elif scope["path"].startswith("/models/"):
            await self._serve_move(scope["path"].removeprefix("/models/"), json.loads(body), send)
        else:
            self.asked.append((scope["path"], dict(scope["headers"]), json.loads(body)))
            await self._serve_answer(receive, send)

    def _told(self, path: str) -> bytes:
        return {
            "/discovery": lambda: ENCODE(self.found),
            "/models": lambda: ENCODE(list(self.states.values())),
            "/health": lambda: ENCODE(msgspec.structs.replace(self.health, models=self.activities)),
        }[path]()

    async def _serve_load(self, body: dict[str, Any], send: Send) -> None:
        self.loads.append(body)
        try:
            await self.load(body)
        except CortexError as error:
            again = error.retry_after_s
            fields = [] if again is None else [(b"retry-after", str(round(again)).encode())]
            await _answer(send, error.status, [*JSON, *fields], write_openai(error))
        else:
            done = {"status": "loaded", "model_id": body["model_id"]}
            await _answer(send, 200, JSON, ENCODE(done))

    async def _serve_move(self, how: str, body: dict[str, Any], send: Send) -> None:
        if how == "plan":
            self.plans.append(body)
            await _answer(send, 200, JSON, ENCODE(self.plan(body)))
            return
        self.moves.append((how, body["model_id"]))
        try:
            await self.move(how, body["model_id"])
        except CortexError as error:
            await _answer(send, error.status, JSON, write_openai(error))
            return
        state = self.states.get(body["model_id"])
        status = state.status if state else "unloaded"
        await _answer(send, 200, JSON, ENCODE({"status": status, "model_id": body["model_id"]}))

    async def _move(self, how: str, model_id: str) -> None:
        if how == "unload":
            self.states.pop(model_id, None)
        else:
            status = "sleeping" if how == "sleep" else "loaded"
            self.states[model_id] = msgspec.structs.replace(self.states[model_id], status=status)

    async def _serve_answer(self, receive: Receive, send: Send) -> None:
        status, headers, parts = self.answer(len(self.asked) - 1)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            if part is None:
                self.began.set()
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.left.set()
                return
            if isinstance(part, asyncio.Event):
                self.began.set()
                await part.wait()
            else:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Running:
    """A gateway and its neurons."""

    def __init__(
        self,
        gateway: Gateway,
        neurons: tuple[FakeNeuron, ...],
        configured: tuple[Config, Catalogue, CatalogueStatus],
    ) -> None:
        self.gateway = gateway
        self.neurons = neurons
        self._configured = configured

    def endpoint(self, name: str) -> str:
        return self.gateway.fleet.node(name).endpoint

    async def have(self, **nodes: str) -> None:
        """What SIGHUP does: these nodes from now on, names and endpoints."""
        config, catalogue, found = self._configured
        neurons = [NeuronSettings(name=name, endpoint=where) for name, where in nodes.items()]
        config = msgspec.structs.replace(config, neurons=neurons)
        await self.gateway.adopt(config, catalogue, found)

    async def get(self, path: str, headers: Headers | None = None) -> Any:
        answer = await collect(self.gateway.front, "GET", path, headers=headers)
        assert answer.status == 200, answer.body
        return answer.json

    async def ask(self, model: str | None = "m", **fields: Any) -> Collected:
        """One chat request; `path`, `query`, `headers`, `leave` and `on_message` go to `collect`."""
        path = fields.pop("path", "/v1/chat/completions")
        rest = {
            name: fields.pop(name)
            for name in ("query", "headers", "leave", "on_message")
            if name in fields
        }
        body = fields.pop("body", None)
        if body is None:
            body = json.dumps({"model": model, "messages": [], **fields}).encode()
        return await collect(self.gateway.front, "POST", path, body=body, **rest)

    async def metrics(self) -> list[str]:
        answer = await collect(self.gateway.metrics_front, "GET", "/metrics")
        return answer.body.decode().splitlines()

    async def poll(self) -> None:
        await self.gateway.poller.poll_all()


@asynccontextmanager
async def start(
    *neurons: FakeNeuron | str,
    models: list[Model] | None = None,
    aliases: dict[str, str] | None = None,
    fallbacks: dict[str, list[str]] | None = None,
    **config: Any,
) -> AsyncIterator[Running]:
    """Nodes are called a, b, c, d; one given as a URL is not there. Polls happen when a test asks for them."""
    config.setdefault("poll", {"interval_s": 3600, "timeout_s": 2})
    async with AsyncExitStack() as stack:
        endpoints = [
            n if isinstance(n, str) else await stack.enter_async_context(serving(n))
            for n in neurons
        ]
        secrets = config.pop("secrets", {})
        config["neurons"] = [
            {"name": name, "endpoint": endpoint, "secret": secrets.get(name)}
            for name, endpoint in zip("abcd", endpoints, strict=False)
        ] + config.pop("more_nodes", [])
        catalogue = Catalogue(models=models or [], aliases=aliases or {}, fallbacks=fallbacks or {})
        found = CatalogueStatus(
            path="/x/models.toml", found=True, models=len(catalogue.models), aliases=0
        )
        configured = msgspec.convert(config, Config), catalogue, found
        gateway = await stack.enter_async_context(open_gateway(*configured))
        fakes = tuple(n for n in neurons if isinstance(n, FakeNeuron))
        yield Running(gateway, fakes, configured)


@pytest.fixture(name="fake")
def _fake() -> type[FakeNeuron]:
    return FakeNeuron


@pytest.fixture(name="start")
def _start() -> Any:
    return start
