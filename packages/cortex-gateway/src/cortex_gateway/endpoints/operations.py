# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators and their tools ask: health, version, the whole fleet, and on a port of their own the metrics."""

import time
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cortex_core import build, openai
from cortex_core.errors import RequestNotFoundError, RouteNotFoundError
from cortex_gateway.endpoints.answer import answer_json
from cortex_gateway.fleet import Fleet
from cortex_gateway.journal import KEPT_REQUESTS, Journal
from cortex_gateway.metrics import CONTENT_TYPE, Metrics
from cortex_gateway.operator import ModelOrder, NodeOrder, Operator, PlanOrder
from cortex_gateway.status import CatalogueStatus, tell_fleet, tell_health

T = TypeVar("T")

_MODEL = msgspec.json.Decoder(ModelOrder)
_NODE = msgspec.json.Decoder(NodeOrder)
_PLAN = msgspec.json.Decoder(PlanOrder)
# Of the requests that run, the oldest: those that an operator looks for.
TOLD_REQUESTS = 200


class Operations:
    """Serves what is known of the fleet, from memory, and takes operators' orders.

    Args:
        fleet: what is known of the nodes.
        catalogue: what was read of models.toml.
        metrics: what was counted.
        operator: carries out what operators want.
        journal: what became of requests.
    """

    def __init__(
        self,
        fleet: Fleet,
        catalogue: CatalogueStatus,
        metrics: Metrics,
        operator: Operator,
        journal: Journal,
    ) -> None:
        self._operator = operator
        self._journal = journal
        self._fleet = fleet
        self._catalogue = catalogue
        self._config_error: str | None = None
        self._metrics = metrics

    def adopt(self, catalogue: CatalogueStatus) -> None:
        """This was read of models.toml, and nothing is wrong with the configuration."""
        self._catalogue = catalogue
        self._config_error = None

    def note_config_error(self, reason: str) -> None:
        """The configuration was read again, and is wrong: what was there before stays in force."""
        self._config_error = reason

    def routes(self) -> list[BaseRoute]:
        """For the API's port."""
        return [
            Route("/", self.health, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
            Route("/fleet", self.fleet, methods=["GET"]),
            Route("/fleet/requests/{request_id:path}", self.request, methods=["GET"]),
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
        view, now_s = self._fleet.view(), time.monotonic()
        told = tell_fleet(view, self._fleet.decisions, now_s)
        running = [record.tell_running(now_s) for record in self._journal.running[:TOLD_REQUESTS]]
        return answer_json(
            msgspec.structs.replace(told, config_error=self._config_error, requests=running)
        )

    async def request(self, request: Request) -> Response:
        """What became of one request, and why. Raises RequestNotFoundError."""
        request_id = request.path_params["request_id"]
        record = self._journal.find(request_id)
        if record is None:
            raise RequestNotFoundError(request_id=request_id, kept=KEPT_REQUESTS)
        return answer_json(record.tell(time.monotonic()))

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
