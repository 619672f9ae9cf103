# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks every neuron what it is and has, again and again, and tells the fleet.

The nodes are asked side by side, so that one which hangs delays no other. What changes nothing is silent.
"""

import asyncio
import time
from collections.abc import Callable, Container, Mapping
from typing import TypeVar

from cortex_core import logs
from cortex_core.discovery import Discovery
from cortex_core.errors import CortexError
from cortex_core.http.client import Client, RefusedError
from cortex_core.node import Health, ModelState
from cortex_core.wire import WIRE_VERSION
from cortex_gateway.config import PollSettings
from cortex_gateway.fleet import Fleet, Report
from cortex_gateway.openai_client import OpenAIClient
from cortex_gateway.problems import Problem, name_twin, read_problem

log = logs.get(__name__)

T = TypeVar("T")

# Intervals between two looks at a server that is no neuron: there is but a list of models to learn.
RARELY = 10


class Poller:
    """Keeps the fleet true.

    Args:
        fleet: told what was found.
        clients: one per node, as they are now.
        settings: interval, deadline.
        on_lost: told the name of each node that goes down.
        with_secret: nodes that a secret is configured for, as they are now.
    """

    def __init__(
        self,
        fleet: Fleet,
        clients: Mapping[str, Client],
        settings: PollSettings,
        on_lost: Callable[[str], None],
        with_secret: Container[str] = (),
    ) -> None:
        self._fleet = fleet
        self._clients = clients
        self._settings = settings
        self._on_lost = on_lost
        self._with_secret = with_secret
        # One look at a time per node: an older answer must not overwrite a newer one.
        self._locks: dict[str, asyncio.Lock] = {}
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._kinds: dict[str, str] = {}  # of problems that were said
        self._twins: dict[str, str] = {}

    async def run(self) -> None:
        """Look at every node each interval, at some more rarely, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for name in self._clients:
                self.watch(name)
            await asyncio.Event().wait()

    def watch(self, name: str) -> None:
        """Look at a node again and again from now on, as long as `run` runs."""
        if self._tasks and name not in self._loops:
            self._loops[name] = self._tasks.create_task(self._run(name))

    def forget(self, name: str) -> None:
        """Look at a node no more."""
        for kept in (self._locks, self._kinds, self._twins):
            kept.pop(name, None)
        if loop := self._loops.pop(name, None):
            loop.cancel()

    async def poll_all(self) -> None:
        """Look at every node once."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._clients:
                tasks.create_task(self.poll(name))

    async def poll(self, name: str) -> None:
        """Look at one node now; what it says, or that it says nothing, is known afterwards. One that has left is let be."""
        if name not in self._clients:
            return
        async with self._locks.setdefault(name, asyncio.Lock()):
            while await self._look_and_apply(name):
                pass

    async def _run(self, name: str) -> None:
        passed = 0
        while True:
            await asyncio.sleep(self._settings.interval_s)
            passed += 1
            try:
                if passed >= self._intervals(name):
                    passed = 0
                    await self.poll(name)
            except Exception:  # a fault of ours must not end the loop
                log.exception("poll failed", node=name)

    def _intervals(self, name: str) -> int:
        """Between two looks at it. One that fails, or has requests of ours, is looked at as often as a neuron."""
        node = self._fleet.node(name)
        is_well = node.is_up and not node.misses and self._fleet.is_idle(name)
        return RARELY if is_well and isinstance(self._clients.get(name), OpenAIClient) else 1

    async def _look_and_apply(self, name: str) -> bool:
        """Whether another look is due at once, since another neuron answers there than before."""
        client = self._clients.get(name)
        if client is None:
            return False
        was_discovered = self._fleet.node(name).is_discovered
        try:
            await self._apply(name, client, await self._look(name, client))
        except (CortexError, RefusedError) as error:
            if self._is_asked_by(name, client):
                status = error.status if isinstance(error, RefusedError) else None
                has_secret = name in self._with_secret
                self._miss(name, read_problem(error, status, has_secret=has_secret))
            return False
        if not self._is_asked_by(name, client):
            return False
        node = self._fleet.node(name)
        return was_discovered and node.is_up and not node.is_discovered

    def _is_asked_by(self, name: str, client: Client) -> bool:
        """Whether it still is; else it has left, or is another machine by now, and what was heard is not of that one."""
        return self._clients.get(name) is client

    async def _look(self, name: str, client: Client) -> Report:
        """Raises CortexError or RefusedError where GET /models fails: that alone decides whether a node is up."""
        timeout_s = self._settings.timeout_s
        if isinstance(client, OpenAIClient):
            return await client.look(timeout_s)
        wanted = None if self._fleet.node(name).is_discovered else Discovery
        async with asyncio.TaskGroup() as tasks:
            health = tasks.create_task(_try(client, "/health", Health, timeout_s))
            discovery = tasks.create_task(_try(client, "/discovery", wanted, timeout_s))
            models = tasks.create_task(_models(client, timeout_s))
        found = models.result()
        if isinstance(found, CortexError | RefusedError):
            raise found
        return Report(models=tuple(found), health=health.result(), discovery=discovery.result())

    async def _apply(self, name: str, client: Client, report: Report) -> None:
        if not self._is_asked_by(name, client):
            return
        if (known := self._twins.get(name)) and not self._find_twin(name, report):
            await self.poll(known)  # both names lead to another start of it, maybe
            if not self._is_asked_by(name, client):
                return
        if twin := self._find_twin(name, report):
            first, second = sorted((name, twin), key=list(self._clients).index)
            self._twins.pop(first, None)  # or each could wait for a look at the other
            self._twins[second] = first
            self._miss(second, name_twin(first))
            if second == name:
                return
        self._twins.pop(name, None)
        self._kinds.pop(name, None)
        if self._fleet.apply_report(name, report, time.monotonic()):
            self._say_up(name, report)

    def _find_twin(self, name: str, report: Report) -> str | None:
        """Another node that is up and the same neuron; None: there is none, or the neuron is too old to tell.

        One that has left is none, nor has it any: it gets nothing new, whatever its neuron is called now.
        """
        instance = report.health.instance if report.health else None
        if instance is None or self._fleet.is_retired(name):
            return None
        for node in self._fleet.view().nodes:
            other = node.health.instance if node.is_up and node.health else None
            if node.name != name and other == instance and not self._fleet.is_retired(node.name):
                return node.name
        return None

    def _say_up(self, name: str, report: Report) -> None:
        node = self._fleet.node(name)
        found = node.discovery
        log.info(
            "node is up",
            node=name,
            endpoint=node.endpoint,
            devices=len(found.devices) if found else None,
            version=found.version if found else None,
            models=[state.id for state in report.models],
        )
        if found and found.wire != WIRE_VERSION:
            log.warning("node speaks another version", node=name, wire=found.wire)

    def _miss(self, name: str, problem: Problem) -> None:
        lost = self._fleet.apply_miss(name, problem, at_once=problem.kind == "twin")
        node = self._fleet.node(name)
        is_new = self._kinds.get(name) != problem.kind
        if lost:
            log.warning("node lost", node=name, reason=problem.text, misses=node.misses)
            self._on_lost(name)
        elif is_new and problem.is_told:
            log.warning(
                "node cannot be used", node=name, endpoint=node.endpoint, reason=problem.text
            )
        elif not node.was_seen and node.misses == 1:
            log.warning("node does not answer", node=name, reason=problem.text)
        self._kinds[name] = problem.kind


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
