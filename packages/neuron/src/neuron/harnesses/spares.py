# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that has done its imports ahead, waiting for an engine to run: used once, then replaced.

Imports are most of a small model's load.
"""

import asyncio
from collections.abc import Mapping

import msgspec

from cortex_core import logs
from neuron.harnesses.environment import environ
from neuron.host.messages import Preload
from neuron.host_process import HostProcess, HostStartError, start_host

log = logs.get(__name__)

STOP_S = 2.0


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a spare fit an engine.

    Attributes:
        python: interpreter.
        environ: variables that must be there before the imports; None removes one.
        preload: what is imported.
    """

    python: str
    environ: Mapping[str, str | None] = {}
    preload: Preload


class Spares:
    """Owner of the one spare."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._host: HostProcess | None = None
        self._recipe: Recipe | None = None
        self._closing = False

    def take(self, recipe: Recipe) -> HostProcess | None:
        """The spare, which is the caller's from now on, whether or not its imports are done; None: there is none."""
        host = self._host
        if host is None or self._recipe != recipe or not host.is_alive:
            return None  # a dead one is cleared away by the next refill
        self._host = None
        return host

    async def refill(self, recipe: Recipe) -> None:
        """Have a spare of the recipe, unless there is one. One of another recipe is ended."""
        before = self._host
        if self._closing or (before and before.is_alive and self._recipe == recipe):
            return
        self._host, self._recipe = None, recipe
        if before is not None:
            await before.stop(STOP_S)
        try:
            host = await start_host(
                recipe.python,
                environ(recipe.environ),
                f"spare for {recipe.preload.harness}",
                self._tasks,
            )
        except HostStartError as error:
            log.warning("no warm spare", reason=str(error))
            return
        if self._wants(recipe):
            self._host = host
            await host.tell(recipe.preload)
        else:
            await host.stop(STOP_S)

    def _wants(self, recipe: Recipe) -> bool:
        return not self._closing and self._host is None and self._recipe == recipe

    async def stop(self) -> None:
        """End it, and make no other."""
        self._closing = True
        host, self._host = self._host, None
        if host is not None:
            await host.stop(STOP_S)
