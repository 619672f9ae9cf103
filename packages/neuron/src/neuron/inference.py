# SPDX-License-Identifier: GPL-3.0-or-later
"""The inference routes: which engine has the model, the request's turn there, and the exchange with it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from cortex_core import openai, wire
from cortex_core.errors import (
    CortexError,
    EngineDiedError,
    FleetError,
    ModelLoadingError,
    ModelNotFoundError,
    ModelRecoveringError,
    NoHealthyNodeError,
    RouteNotFoundError,
    ShuttingDownError,
    UpstreamTimeoutError,
    WrongModalityError,
)
from cortex_core.http import headers
from cortex_core.http.client import Reply
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Handler
from cortex_core.http.headers import Headers
from cortex_core.http.relay import Verbatim, VerbatimResponses, relay
from cortex_core.node import ModelStatus
from neuron.admission import ANONYMOUS, TurnedAwayError
from neuron.harnesses.failures import failure_error
from neuron.measuring import Measuring
from neuron.metrics import UNKNOWN, Metrics
from neuron.residents import Resident, Residents
from neuron.traffic import Link, Traffic

# Path to what the answers pass through. Which of them a model serves, its engine knows.
PATHS: dict[str, Callable[[str], Verbatim]] = {
    "/v1/chat/completions": Verbatim,
    "/v1/completions": Verbatim,
    "/v1/responses": VerbatimResponses,
    "/v1/embeddings": Verbatim,
    "/v1/score": Verbatim,
    "/v1/rerank": Verbatim,
    "/tokenize": Verbatim,
}
# Nothing is generated there: such a request waits for none that does.
COUNTED = frozenset({"/tokenize"})
_NO_ROUTE = f'"code":"{RouteNotFoundError.code}"'.encode()
# What a model is whose engine was lost under its requests.
LOST = (ModelStatus.RECOVERING, ModelStatus.FAILED)
# How long the cause of an engine's end may take to be known, after its connections broke.
CAUSE_S = 2.0


class Inference:
    """The inference routes of one daemon."""

    def __init__(
        self,
        node: str,
        residents: Residents,
        traffic: Traffic,
        metrics: Metrics,
        measuring: Measuring,
    ) -> None:
        self._node = node
        self._residents = residents
        self._traffic = traffic
        self._metrics = metrics
        self._measuring = measuring

    def routes(self) -> dict[str, Handler]:
        """Path to handler."""
        return dict.fromkeys(PATHS, self.infer)

    async def infer(self, exchange: Exchange, body: bytes) -> None:
        """Pass a request to the engine of its model, and the answer back."""
        asked = openai.read_asked(body)
        model = asked.model or ""
        resident = self._residents.find_served(model)
        if resident is None:
            raise ModelNotFoundError(model=model, param="model")
        exchange.notes["model"] = resident.id
        link = self._traffic.find(resident.id)
        if link is None or resident.status is not ModelStatus.LOADED:
            raise self._not_serving(resident)
        # The engine knows its adapters by their names.
        if model != resident.id and model not in (resident.spec.lora or {}):
            body = openai.rename_model(body, resident.id)
        async with self._admitted(exchange, resident.id, link):
            await self._exchange(exchange, resident.id, link, body)

    @contextlib.asynccontextmanager
    async def _admitted(self, exchange: Exchange, model_id: str, link: Link) -> AsyncIterator[None]:
        """Hold the request's place; entered when it is its turn. A refusal comes before the answer begins."""
        began_s = time.monotonic()
        principal = (exchange.header(wire.PRINCIPAL.encode()) or b"").decode("latin-1")
        async with contextlib.AsyncExitStack() as stack:
            try:
                generates = exchange.path not in COUNTED
                place = link.place(model_id, principal or ANONYMOUS, generates=generates)
                await stack.enter_async_context(place)
            except (TurnedAwayError, CortexError) as refused:
                error = refused if isinstance(refused, CortexError) else self._turned_away(model_id)
                self._metrics.note_rejection(model_id, error.code)
                raise error from None
            self._metrics.note_queue(model_id, time.monotonic() - began_s)
            yield

    async def _exchange(self, exchange: Exchange, model_id: str, link: Link, body: bytes) -> None:
        fields = _engine_headers(exchange)
        opening = link.client.open("POST", exchange.path, headers=fields, body=body)
        passing = PATHS[exchange.path](model_id)
        try:
            async with opening as reply:
                if (
                    reply.is_event_stream
                ):  # its first bytes come with its first token: the prompt has been read
                    exchange.notes |= self._free_memory(model_id)
                watched = _Watched(reply, self, model_id, link, exchange.path)
                await relay(exchange, watched, passing, _dropped(reply))
        except FleetError as error:
            raise await self.explain(error, model_id, link) from None

    def _free_memory(self, model_id: str) -> dict[str, object]:
        """MiB that are free on the fullest of the model's devices as last measured, for the log: a driver asked here could hang."""
        resident = self._residents.get(model_id)
        mine = resident.devices if resident else []
        devices = (d for d in self._measuring.devices() if d.index in mine)
        free_mb = [d.vram_free_mb for d in devices if d.vram_free_mb is not None]
        return {"vram_free_mb": min(free_mb)} if free_mb else {}

    async def explain(self, error: FleetError, model_id: str, link: Link) -> FleetError:
        """What a broken exchange means: the engine is gone, and why."""
        if isinstance(error, EngineDiedError | UpstreamTimeoutError):
            return error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAUSE_S):
                await link.gone.wait()
        resident = self._residents.find(model_id)
        if resident and resident.failure and resident.status in LOST:
            return EngineDiedError(model=model_id, reason=resident.failure.reason)
        reason = "it was unloaded" if link.gone.is_set() else error.message
        return EngineDiedError(model=model_id, reason=reason)

    def _not_serving(self, resident: Resident) -> CortexError:
        match resident.status:
            case ModelStatus.LOADING | ModelStatus.SLEEPING:
                return ModelLoadingError(model=resident.id, node=self._node)
            case ModelStatus.RECOVERING:
                return ModelRecoveringError(model=resident.id)
            case ModelStatus.FAILED if resident.failure is not None:
                return failure_error(resident.id, self._node, resident.failure)
            case _:
                return NoHealthyNodeError(model=resident.id, reason="it is being unloaded here")

    def _turned_away(self, model_id: str) -> CortexError:
        """Why there was no turn: the daemon stops, or the model goes, or its engine has gone."""
        if self._traffic.is_closed:
            return ShuttingDownError(daemon="neuron")
        resident = self._residents.get(model_id)
        if resident is None or resident.status is ModelStatus.LOADED:
            return NoHealthyNodeError(model=model_id, reason="its engine here takes no more work")
        return self._not_serving(resident)

    def wrong_modality(self, model_id: str, path: str) -> WrongModalityError:
        """The model's engine has no such route."""
        resident = self._residents.get(model_id)
        capabilities = resident.ready.capabilities if resident and resident.ready else []
        told = ", ".join(capabilities) or "none"
        return WrongModalityError(model=model_id, path=path, capabilities=told, param="model")

    def note_end(self, exchange: Exchange, error: CortexError | None) -> None:
        """Count a request that has ended. Ids come from clients: one that is not here has no series of its own."""
        noted = str(exchange.notes.get("model", UNKNOWN))
        model = noted if self._residents.get(noted) else UNKNOWN
        code = error.code if error else exchange.notes.get("error_code")
        if code is None and exchange.client_gone:
            code = "client_gone"
        self._metrics.note_request(model, str(code or "ok"))


class _Watched:
    """An engine's answer, which knows why it breaks off, or is none."""

    def __init__(
        self, reply: Reply, inference: Inference, model_id: str, link: Link, path: str
    ) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._inference = inference
        self._model_id = model_id
        self._link = link
        self._path = path

    @property
    def is_event_stream(self) -> bool:
        return self._reply.is_event_stream

    async def read(self) -> bytes:
        try:
            part = await self._reply.read()
        except FleetError as error:
            raise await self._inference.explain(error, self._model_id, self._link) from None
        # An engine host has the routes that its model serves, and no others.
        if self.status == RouteNotFoundError.status and _NO_ROUTE in part:
            raise self._inference.wrong_modality(self._model_id, self._path)
        return part


def _dropped(reply: Reply) -> Headers:
    """What the engine says that it left out of the request."""
    name = wire.DROPPED.encode()
    found = headers.find(reply.headers, name)
    return [] if found is None else [(name, found)]


def _engine_headers(exchange: Exchange) -> Headers:
    """What the engine is told. Between daemons it is the gateway that asks for the usage."""
    fields = headers.to_upstream(exchange.scope["headers"])
    fields.append((wire.REQUEST_ID.encode(), exchange.request_id.encode()))
    usage = wire.USAGE.encode()
    if (wanted := exchange.header(usage)) is not None:
        fields.append((usage, wanted))
    return fields
