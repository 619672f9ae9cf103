# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks every neuron what it is and has, again and again, and tells the fleet.

The nodes are asked side by side, so that one which hangs delays no other. What changes nothing is silent.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from cortex_core import logs
from cortex_core.discovery import Discovery
from cortex_core.errors import CortexError
from cortex_core.http.client import Client, RefusedError
from cortex_core.node import Health, ModelState
from cortex_gateway.config import PollSettings
from cortex_gateway.fleet import Fleet, Report

log = logs.get(__name__)

T = TypeVar("T")


class Poller:
    """Keeps the fleet true.

    Args:
        fleet: told what was found.
        clients: one per node.
        settings: interval, deadline.
        on_lost: told the name of each node that goes down.
    """

    def __init__(
        self,
        fleet: Fleet,
        clients: Mapping[str, Client],
        settings: PollSettings,
        on_lost: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._clients = clients
        self._settings = settings
        self._on_lost = on_lost
        # One look at a time per node: an older answer must not overwrite a newer one.
        self._locks = {name: asyncio.Lock() for name in clients}

    async def run(self) -> None:
        """Look at every node each interval, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._clients:
                tasks.create_task(self._run(name))

    async def poll_all(self) -> None:
        """Look at every node once."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._clients:
                tasks.create_task(self.poll(name))

    async def poll(self, name: str) -> None:
        """Look at one node now; what it says, or that it says nothing, is known afterwards."""
        async with self._locks[name]:
            try:
                report = await self._look(name)
            except (CortexError, RefusedError) as error:
                self._miss(name, str(error))
            else:
                self._apply(name, report)

    async def _run(self, name: str) -> None:
        while True:
            await asyncio.sleep(self._settings.interval_s)
            try:
                await self.poll(name)
            except Exception:  # a fault of ours must not end the loop
                log.exception("poll failed", node=name)

    async def _look(self, name: str) -> Report:
        """Raises CortexError or RefusedError where GET /models fails: that alone decides whether a node is up."""
        client = self._clients[name]
        timeout_s = self._settings.timeout_s
        wanted = None if self._fleet.node(name).is_discovered else Discovery
        async with asyncio.TaskGroup() as tasks:
            health = tasks.create_task(_try(client, "/health", Health, timeout_s))
            discovery = tasks.create_task(_try(client, "/discovery", wanted, timeout_s))
            models = tasks.create_task(_models(client, timeout_s))
        found = models.result()
        if isinstance(found, CortexError | RefusedError):
            raise found
        return Report(models=tuple(found), health=health.result(), discovery=discovery.result())

    def _apply(self, name: str, report: Report) -> None:
        if self._fleet.apply_report(name, report, time.monotonic()):
            found = self._fleet.node(name).discovery
            log.info(
                "node is up",
                node=name,
                endpoint=self._fleet.node(name).endpoint,
                devices=len(found.devices) if found else None,
                version=found.version if found else None,
                models=[state.id for state in report.models],
            )

    def _miss(self, name: str, reason: str) -> None:
        if self._fleet.apply_miss(name):
            log.warning("node lost", node=name, reason=reason, misses=self._fleet.node(name).misses)
            self._on_lost(name)
        elif not self._fleet.node(name).was_seen and self._fleet.node(name).misses == 1:
            log.warning("node does not answer", node=name, reason=reason)


async def _models(
    client: Client, timeout_s: float
) -> list[ModelState] | CortexError | RefusedError:
    # An error is returned and not raised: in a task group it would cancel its neighbours, and come wrapped.
    try:
        return await client.ask("GET", "/models", list[ModelState], timeout_s=timeout_s)
    except (CortexError, RefusedError) as error:
        return error


async def _try(client: Client, path: str, kind: type[T] | None, timeout_s: float) -> T | None:
    """What can be missing: an error of it says nothing of the node."""
    if kind is None:
        return None
    try:
        return await client.ask("GET", path, kind, timeout_s=timeout_s)
    except (CortexError, RefusedError) as error:
        log.debug("poll incomplete", endpoint=client.endpoint, path=path, reason=str(error))
        return None
