# SPDX-License-Identifier: GPL-3.0-or-later
"""The inference routes: which engine has the model, and the exchange with it."""

import asyncio
import contextlib

from cortex_core import openai, wire
from cortex_core.errors import (
    CortexError,
    EngineDiedError,
    FleetError,
    ModelLoadingError,
    ModelNotFoundError,
    ModelRecoveringError,
    NoHealthyNodeError,
    UpstreamTimeoutError,
)
from cortex_core.http import headers
from cortex_core.http.client import Reply
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Handler
from cortex_core.http.headers import Headers
from cortex_core.http.relay import Verbatim, relay
from cortex_core.node import ModelStatus
from neuron.harnesses.failures import failure_error
from neuron.metrics import UNKNOWN, Metrics
from neuron.residents import Resident, Residents
from neuron.traffic import Link, Traffic

PATHS = ("/v1/chat/completions", "/v1/completions")
# How long the cause of an engine's end may take to be known, after its connections broke.
CAUSE_S = 2.0


class Inference:
    """The inference routes of one daemon."""

    def __init__(self, node: str, residents: Residents, traffic: Traffic, metrics: Metrics) -> None:
        self._node = node
        self._residents = residents
        self._traffic = traffic
        self._metrics = metrics

    def routes(self) -> dict[str, Handler]:
        """Path to handler."""
        return dict.fromkeys(PATHS, self.infer)

    async def infer(self, exchange: Exchange, body: bytes) -> None:
        """Pass a request to the engine of its model, and the answer back."""
        asked = openai.read_asked(body)
        model = asked.model or ""
        resident = self._residents.find(model)
        if resident is None:
            raise ModelNotFoundError(model=model, param="model")
        exchange.notes["model"] = resident.id
        link = self._traffic.find(resident.id)
        if link is None or resident.status is not ModelStatus.LOADED:
            raise self._not_serving(resident)
        if model != resident.id:
            body = openai.rename_model(body, resident.id)
        with link.request():
            await self._exchange(exchange, resident.id, link, body)

    async def _exchange(self, exchange: Exchange, model_id: str, link: Link, body: bytes) -> None:
        fields = _engine_headers(exchange)
        opening = link.client.open("POST", exchange.path, headers=fields, body=body)
        try:
            async with opening as reply:
                watched = _Watched(reply, self, model_id, link)
                await relay(exchange, watched, Verbatim(model_id), [])
        except FleetError as error:
            raise await self.explain(error, model_id, link) from None

    async def explain(self, error: FleetError, model_id: str, link: Link) -> FleetError:
        """What a broken exchange means: the engine is gone, and why."""
        if isinstance(error, EngineDiedError | UpstreamTimeoutError):
            return error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAUSE_S):
                await link.gone.wait()
        resident = self._residents.find(model_id)
        if resident and resident.failure and resident.status is ModelStatus.FAILED:
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

    def note_end(self, exchange: Exchange, error: CortexError | None) -> None:
        """Count a request that has ended."""
        model = str(exchange.notes.get("model", UNKNOWN))
        code = error.code if error else exchange.notes.get("error_code")
        if code is None and exchange.client_gone:
            code = "client_gone"
        self._metrics.note_request(model, str(code or "ok"))


class _Watched:
    """An engine's answer, which knows why it breaks off."""

    def __init__(self, reply: Reply, inference: Inference, model_id: str, link: Link) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._inference = inference
        self._model_id = model_id
        self._link = link

    @property
    def is_event_stream(self) -> bool:
        return self._reply.is_event_stream

    async def read(self) -> bytes:
        try:
            return await self._reply.read()
        except FleetError as error:
            raise await self._inference.explain(error, self._model_id, self._link) from None


def _engine_headers(exchange: Exchange) -> Headers:
    """What the engine is told. Between daemons it is the gateway that asks for the usage."""
    fields = headers.to_upstream(exchange.scope["headers"])
    fields.append((wire.REQUEST_ID.encode(), exchange.request_id.encode()))
    usage = wire.USAGE.encode()
    if (wanted := exchange.header(usage)) is not None:
        fields.append((usage, wanted))
    return fields
