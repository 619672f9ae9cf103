# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators and their tools ask: health, version, the whole fleet, and on a port of their own the metrics."""

import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cortex_core import build
from cortex_gateway.endpoints.answer import answer_json
from cortex_gateway.fleet import Fleet
from cortex_gateway.metrics import CONTENT_TYPE, Metrics
from cortex_gateway.status import CatalogueStatus, tell_fleet, tell_health


class Operations:
    """Serves what is known of the fleet, from memory: no neuron is asked.

    Args:
        fleet: what is known of the nodes.
        catalogue: what was read of models.toml.
        metrics: what was counted.
    """

    def __init__(self, fleet: Fleet, catalogue: CatalogueStatus, metrics: Metrics) -> None:
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

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text."""
        return Response(self._metrics.render(), headers={"content-type": CONTENT_TYPE})
