# SPDX-License-Identifier: GPL-3.0-or-later
"""The routes /weights: what of models is on disk, fetch, remove."""

from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cortex_core.errors import ShuttingDownError
from cortex_core.openai import read_body
from cortex_core.weights import PullRequest, RemoveRequest
from neuron.weights.store import Weights

T = TypeVar("T")

_ENCODE = msgspec.json.Encoder()


class WeightsRoutes:
    """The routes of one daemon's files of models."""

    def __init__(self, weights: Weights, is_closing: Callable[[], bool]) -> None:
        self._weights = weights
        self._is_closing = is_closing

    def routes(self) -> list[BaseRoute]:
        """Paths, methods and handlers."""
        return [
            Route("/weights", self.list, methods=["GET"]),
            Route("/weights/pull", self.pull, methods=["POST"]),
            Route("/weights/remove", self.remove, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """Every model on disk, and every one on its way there."""
        return _json(await self._weights.report())

    async def pull(self, request: Request) -> Response:
        """Fetch a model; with `wait` false, say only that it is on its way."""
        wanted = await self._read(request, PullRequest)
        answer = await self._weights.pull(wanted.model_id, wanted.quant, wait=wanted.wait)
        return _json(answer, 202 if answer.status == "downloading" else 200)

    async def remove(self, request: Request) -> Response:
        """Remove a model's files."""
        wanted = await self._read(request, RemoveRequest)
        return _json(await self._weights.remove(wanted.model_id))

    async def _read(self, request: Request, kind: type[T]) -> T:
        if self._is_closing():
            raise ShuttingDownError(daemon="neuron")
        return read_body(await request.body(), msgspec.json.Decoder(kind))


def _json(value: object, status: int = 200) -> Response:
    return Response(_ENCODE.encode(value), status, media_type="application/json")
