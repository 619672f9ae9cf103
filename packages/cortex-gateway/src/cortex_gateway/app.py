# SPDX-License-Identifier: GPL-3.0-or-later
"""From a Config to a running gateway; the only place that knows all the parts."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cortex_core import logs
from cortex_core.catalogue import Catalogue
from cortex_core.errors import CortexError, InvalidApiKeyError
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Front
from cortex_core.http.keys import Key
from cortex_gateway.config import Config
from cortex_gateway.dialects import build_dialects
from cortex_gateway.dispatcher import Dispatcher
from cortex_gateway.displacer import Displacer
from cortex_gateway.endpoints.inference import Inference
from cortex_gateway.endpoints.models import Models
from cortex_gateway.endpoints.operations import Operations
from cortex_gateway.eviction import Displace, find_idle
from cortex_gateway.fleet import Fleet
from cortex_gateway.journal import Journal
from cortex_gateway.loader import Loader
from cortex_gateway.metrics import Metrics
from cortex_gateway.operator import Operator
from cortex_gateway.orders import Orders
from cortex_gateway.poller import Poller
from cortex_gateway.recycler import Recycler
from cortex_gateway.roster import Changes, Roster
from cortex_gateway.status import CatalogueStatus
from cortex_gateway.stock import Stock

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
        operations: tells it.
        recycler: has engines reloaded now and then.
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
        self._default_model = config.default_model
        self._rules = config.eviction
        self._tasks = tasks
        self._key = _key(config)
        self._seeing_off: set[asyncio.Task[None]] = set()
        self.fleet = Fleet(
            [(neuron.name, neuron.endpoint) for neuron in config.neurons], misses=config.poll.misses
        )
        self._roster = Roster(config.neurons, settings.idle_timeout_s)
        clients = self._roster.clients
        metrics = Metrics(self.fleet)
        self.poller = Poller(self.fleet, clients, config.poll, self._lose, self._roster.with_secret)
        self.stock = Stock(self.fleet, clients)
        orders = Orders(self.fleet, clients, self.poller)
        self._displacer = Displacer(
            self.fleet,
            orders,
            self.poller,
            config.eviction.drain_s,
            metrics.note_eviction,
        )
        self._loader = Loader(
            fleet=self.fleet,
            catalogue=catalogue,
            clients=clients,
            poller=self.poller,
            orders=orders,
            displacer=self._displacer,
            rules=config.eviction,
            tasks=tasks,
            on_up=metrics.note_up,
        )
        self._dispatcher = Dispatcher(self.fleet, catalogue, self._loader, config, metrics)
        dialects = build_dialects(config.hygiene_rules)
        journal = Journal()
        self._inference = Inference(
            self.fleet, self._dispatcher, clients, metrics, config, dialects, journal
        )
        self.recycler = Recycler(
            self.fleet, catalogue, self._loader, config.eviction, metrics.note_defrag
        )
        self._operator = Operator(
            self.fleet,
            catalogue,
            self._loader,
            self._displacer,
            config.eviction,
            config.loading.load_wait_s,
        )
        self.operations = Operations(self.fleet, found, metrics, self._operator, journal)
        self._models = Models(self.fleet, catalogue, created=int(time.time()))
        self.front = Front(
            daemon="gateway",
            hot=dict.fromkeys(dialects, self._inference.infer),
            routes=[*self._models.routes(), *self.operations.routes()],
            max_body_mb=settings.max_body_mb,
            on_end=self._inference.note_end,
            admit=self._admit,
        )
        self.metrics_front = Front(
            daemon="gateway", hot={}, routes=self.operations.metrics_routes(), max_body_mb=1
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

    async def adopt(self, config: Config, catalogue: Catalogue, found: CatalogueStatus) -> Changes:
        """Have these nodes, this catalogue and these keys from now on; what runs goes on. Other settings stay.

        A node that left is forgotten when its work has ended; one that joined was looked at when this returns.
        """
        changes = self._roster.adopt(config.neurons, self.fleet)
        self._declare(catalogue.with_default(self._default_model))
        self._key = _key(config)
        self.operations.adopt(found)
        for name in changes.left:
            self._loader.leave(name)
        for name in [*changes.left, *changes.changed]:
            task = self._tasks.create_task(self._see_off(name))
            self._seeing_off.add(task)
            task.add_done_callback(self._seeing_off.discard)
        async with asyncio.TaskGroup() as looks:
            for name in [*changes.joined, *changes.changed]:
                self.poller.watch(name)
                looks.create_task(self.poller.poll(name))
        return changes

    def _declare(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        for part in (
            self._loader,
            self._dispatcher,
            self._operator,
            self._models,
            self.recycler,
        ):
            part.declare(catalogue)
        self.fleet.forget_all_needs()

    async def _see_off(self, name: str) -> None:
        """Let go of what a node was asked by before, and of the node itself where it left, once its work has ended."""
        try:
            await self._roster.close_old(name, self.fleet)
            if await self._roster.until_over(name, self.fleet):
                self.poller.forget(name)
                await self._roster.remove(name, self.fleet)
        except Exception:  # a fault of ours must not end the gateway
            log.exception("seeing a node off failed", node=name)

    def stop_seeing_off(self) -> None:
        """Wait no longer for the end of work at nodes that left, or are asked otherwise."""
        for task in self._seeing_off:
            task.cancel()

    def _admit(self, exchange: Exchange) -> CortexError | None:
        """The operators' routes have a key of their own."""
        if self._key is None or not f"{exchange.path}/".startswith("/fleet/"):
            return None
        return None if self._key.is_shown(exchange.scope["headers"]) else InvalidApiKeyError()

    async def close_clients(self) -> None:
        """Close every connection to the nodes."""
        await self._roster.close()

    def close_loader(self) -> None:
        """End what loads are under way, as far as this gateway has a part in them."""
        self._loader.close()

    def _lose(self, node: str) -> None:
        self._loader.lose(node)
        self._inference.lose(node)


@asynccontextmanager
async def open_gateway(
    config: Config, catalogue: Catalogue, found: CatalogueStatus
) -> AsyncIterator[Gateway]:
    """A gateway that has looked at every node once, and goes on looking until the context ends."""
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(config, catalogue, found, tasks)
        try:
            await gateway.poller.poll_all()
            running = [
                tasks.create_task(gateway.poller.run()),
                tasks.create_task(gateway.stock.run()),
            ]
            if config.eviction.idle_ttl_s:
                running.append(tasks.create_task(gateway.run_idle()))
            if config.eviction.defrag_after_cycles:
                running.append(tasks.create_task(gateway.recycler.run(config.poll.interval_s)))
            try:
                yield gateway
            finally:
                for task in running:
                    task.cancel()
                gateway.stop_seeing_off()
        finally:
            gateway.close_loader()
            await gateway.close_clients()


def _key(config: Config) -> Key | None:
    return None if config.fleet.key is None else Key(config.fleet.key)
