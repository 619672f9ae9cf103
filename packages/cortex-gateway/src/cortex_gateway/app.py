# SPDX-License-Identifier: GPL-3.0-or-later
"""From a Config to a running gateway; the only place that knows all the parts."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cortex_core import logs
from cortex_core.catalogue import Catalogue
from cortex_core.http.client import Client
from cortex_core.http.front import Front
from cortex_core.http.headers import Headers
from cortex_gateway.config import Config, NeuronSettings
from cortex_gateway.dialects import build_dialects
from cortex_gateway.dispatcher import Dispatcher
from cortex_gateway.displacer import Displacer
from cortex_gateway.endpoints.inference import Inference
from cortex_gateway.endpoints.models import Models
from cortex_gateway.endpoints.operations import Operations
from cortex_gateway.eviction import Displace, find_idle
from cortex_gateway.fleet import Fleet
from cortex_gateway.loader import Loader
from cortex_gateway.metrics import Metrics
from cortex_gateway.operator import Operator
from cortex_gateway.poller import Poller
from cortex_gateway.status import CatalogueStatus

log = logs.get(__name__)

# What answers need to end in their error once they were cut.
CUT_S = 2.0
# How often, in its idle time, a model is looked at.
IDLE_LOOKS = 10


class Gateway:
    """The parts, wired.

    Attributes:
        front: the API, an ASGI application.
        metrics_front: GET /metrics, likewise.
        fleet: what is known of the nodes.
    """

    def __init__(
        self,
        config: Config,
        catalogue: Catalogue,
        found: CatalogueStatus,
        tasks: asyncio.TaskGroup,
    ) -> None:
        settings = config.gateway
        catalogue = catalogue.with_default(config.default_model)
        self._catalogue = catalogue
        self._rules = config.eviction
        self.fleet = Fleet(
            [(neuron.name, neuron.endpoint) for neuron in config.neurons], misses=config.poll.misses
        )
        self._clients = {
            neuron.name: _client(neuron, settings.idle_timeout_s) for neuron in config.neurons
        }
        metrics = Metrics(self.fleet)
        self.poller = Poller(self.fleet, self._clients, config.poll, on_lost=self._lose)
        self._displacer = Displacer(
            self.fleet,
            self._clients,
            self.poller,
            config.eviction.drain_s,
            metrics.note_eviction,
        )
        self._loader = Loader(
            fleet=self.fleet,
            catalogue=catalogue,
            clients=self._clients,
            poller=self.poller,
            displacer=self._displacer,
            rules=config.eviction,
            tasks=tasks,
            on_up=metrics.note_up,
        )
        dispatcher = Dispatcher(self.fleet, catalogue, self._loader, config)
        dialects = build_dialects(config.hygiene_rules)
        self._inference = Inference(
            self.fleet, dispatcher, self._clients, metrics, config, dialects
        )
        operator = Operator(
            self.fleet,
            catalogue,
            self._loader,
            self._displacer,
            config.eviction,
            config.loading.load_wait_s,
        )
        operations = Operations(self.fleet, found, metrics, operator)
        models = Models(self.fleet, catalogue, created=int(time.time()))
        self.front = Front(
            daemon="gateway",
            hot=dict.fromkeys(dialects, self._inference.infer),
            routes=[*models.routes(), *operations.routes()],
            max_body_mb=settings.max_body_mb,
            on_end=self._inference.note_end,
        )
        self.metrics_front = Front(
            daemon="gateway", hot={}, routes=operations.metrics_routes(), max_body_mb=1
        )

    async def drain(self, within_s: float) -> None:
        """Refuse new work, answer those who wait for a load, let running answers end within `within_s`.

        What still runs then ends in an error that its client can read.
        """
        self.front.close()
        self._loader.close()
        if not await self.front.drained(within_s):
            log.warning("answers cut short", reason="drain_s is over", waited_s=within_s)
            self._inference.cut()
            await self.front.drained(CUT_S)

    async def run_idle(self) -> None:
        """Move models down that nobody has asked for in `idle_ttl_s`, until cancelled."""

        def find() -> list[Displace]:
            return find_idle(self.fleet.view(), self._catalogue, self._rules, time.monotonic())

        await self._displacer.run_idle(find, self._rules.idle_ttl_s / IDLE_LOOKS)

    async def close_clients(self) -> None:
        """Close every connection to the nodes."""
        for client in self._clients.values():
            await client.close()

    def close_loader(self) -> None:
        """End what loads are under way, as far as this gateway has a part in them."""
        self._loader.close()

    def _lose(self, node: str) -> None:
        self._loader.lose(node)


@asynccontextmanager
async def open_gateway(
    config: Config, catalogue: Catalogue, found: CatalogueStatus
) -> AsyncIterator[Gateway]:
    """A gateway that has looked at every node once, and goes on looking until the context ends."""
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(config, catalogue, found, tasks)
        try:
            await gateway.poller.poll_all()
            running = [tasks.create_task(gateway.poller.run())]
            if config.eviction.idle_ttl_s:
                running.append(tasks.create_task(gateway.run_idle()))
            try:
                yield gateway
            finally:
                for task in running:
                    task.cancel()
        finally:
            gateway.close_loader()
            await gateway.close_clients()


def _client(neuron: NeuronSettings, idle_timeout_s: float) -> Client:
    fields: Headers = []
    if neuron.secret is not None:
        fields.append((b"authorization", f"Bearer {neuron.secret}".encode()))
    return Client(neuron.endpoint, idle_timeout_s=idle_timeout_s, headers=fields)
