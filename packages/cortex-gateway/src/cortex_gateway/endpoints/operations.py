# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators and their tools ask: health, version, the whole fleet, and on a port of their own the metrics."""

import time
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cortex_core import build, openai
from cortex_core.errors import RouteNotFoundError
from cortex_gateway.endpoints.answer import answer_json
from cortex_gateway.fleet import Fleet
from cortex_gateway.metrics import CONTENT_TYPE, Metrics
from cortex_gateway.operator import ModelOrder, NodeOrder, Operator, PlanOrder
from cortex_gateway.status import CatalogueStatus, tell_fleet, tell_health

T = TypeVar("T")

_MODEL = msgspec.json.Decoder(ModelOrder)
_NODE = msgspec.json.Decoder(NodeOrder)
_PLAN = msgspec.json.Decoder(PlanOrder)


class Operations:
    """Serves what is known of the fleet, from memory, and takes operators' orders.

    Args:
        fleet: what is known of the nodes.
        catalogue: what was read of models.toml.
        metrics: what was counted.
        operator: carries out what operators want.
    """

    def __init__(
        self, fleet: Fleet, catalogue: CatalogueStatus, metrics: Metrics, operator: Operator
    ) -> None:
        self._operator = operator
        self._fleet = fleet
        self._catalogue = catalogue
        self._metrics = metrics

    def routes(self) -> list[BaseRoute]:
        """For the API's port."""
        return [
            Route("/", self.health, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
            Route("/fleet", self.fleet, methods=["GET"]),
            Route("/fleet/plan", self.plan, methods=["POST"]),
            Route("/fleet/models/{verb}", self.models, methods=["POST"]),
            Route("/fleet/nodes/{verb}", self.nodes, methods=["POST"]),
        ]

    def metrics_routes(self) -> list[BaseRoute]:
        """For the metrics' port."""
        return [Route("/metrics", self.metrics, methods=["GET"])]

    async def health(self, request: Request) -> Response:
        """How the fleet is. Always 200: the gateway itself is well."""
        return answer_json(tell_health(self._fleet.view(), self._catalogue))

    async def version(self, request: Request) -> Response:
        """What is running."""
        return answer_json(build.identity())

    async def fleet(self, request: Request) -> Response:
        """Nodes, devices, models, requests in flight, the last decisions."""
        view = self._fleet.view()
        return answer_json(tell_fleet(view, self._fleet.decisions, time.monotonic()))

    async def plan(self, request: Request) -> Response:
        """What the next request for a model would lead to, and on each node."""
        return answer_json(self._operator.plan(await _read(request, _PLAN)))

    async def models(self, request: Request) -> Response:
        """Have a model loaded, unloaded, put to sleep, woken, pinned or unpinned; answers when it is done.

        Raises:
            RouteNotFoundError: there is no such verb.
            CortexError: as Operator's method of that name.
        """
        verb = request.path_params["verb"]
        order = await _read(request, _MODEL)
        if verb in ("pin", "unpin"):
            return answer_json(self._operator.pin(order, pinned=verb == "pin"))
        moves = {
            "load": self._operator.load,
            "unload": self._operator.unload,
            "sleep": self._operator.sleep,
            "wake": self._operator.wake,
        }
        if verb not in moves:
            raise RouteNotFoundError(method="POST", path=request.url.path)
        return answer_json(await moves[verb](order))

    async def nodes(self, request: Request) -> Response:
        """Have a node get nothing new, or get it again. Raises as `models`."""
        verb = request.path_params["verb"]
        if verb not in ("drain", "undrain"):
            raise RouteNotFoundError(method="POST", path=request.url.path)
        order = await _read(request, _NODE)
        return answer_json(self._operator.drain(order, drained=verb == "drain"))

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text."""
        return Response(self._metrics.render(), headers={"content-type": CONTENT_TYPE})


async def _read(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """Raises MalformedJsonError, InvalidRequestBodyError: the caller's fault."""
    return openai.read_body(await request.body(), decoder)
