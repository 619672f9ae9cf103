# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing up the models that are to be there from the start, whatever the network is like at that hour."""

import asyncio
from collections.abc import Awaitable, Callable

from cortex_core import logs
from cortex_core.control import ModelSpec
from cortex_core.errors import CortexError
from cortex_core.node import ModelState
from cortex_core.weights import DOWNLOADING
from neuron.activating import Activating
from neuron.weights.refusals import is_passing

log = logs.get(__name__)

# After a power cut the way out may come up long after the machine: about ten minutes are waited for it.
RETRY_AFTER_S = (10.0, 20.0, 40.0, 80.0, 160.0, 300.0)


class DefaultModels:
    """The default models on their way up.

    Args:
        specs: in their order.
        load: brings one up, or, told not to wait, sets it on its way; raises CortexError.
        activating: is told how far they are.
        sleep: waits.
    """

    def __init__(
        self,
        specs: list[ModelSpec],
        load: Callable[[ModelSpec, bool], Awaitable[ModelState]],
        activating: Activating,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._specs = specs
        self._load = load
        self._activating = activating
        self._sleep = sleep

    async def run(self) -> None:
        """Load one after the other. One that fails, or is still to be fetched, holds up no other."""
        async with asyncio.TaskGroup() as tasks:
            for spec in self._specs:
                next_may = asyncio.Event()
                tasks.create_task(self._bring_up(spec, next_may))
                await next_may.wait()

    async def _bring_up(self, spec: ModelSpec, next_may: asyncio.Event) -> None:
        try:
            for wait_s in RETRY_AFTER_S:
                if await self._try(spec, next_may, wait_s):
                    return
                next_may.set()
                await self._sleep(wait_s)
            await self._try(spec, next_may, None)
        finally:
            next_may.set()

    async def _try(self, spec: ModelSpec, next_may: asyncio.Event, wait_s: float | None) -> bool:
        """Whether it is settled: loaded, or failed for good. `wait_s`: until it would be tried again; None: never."""
        self._activating.note_begun(spec.model_id)
        try:
            state = await self._load(spec, False)
            if state.progress is not None and state.progress.phase == DOWNLOADING:
                next_may.set()
            await self._load(spec, True)
        except CortexError as error:
            if wait_s is not None and is_passing(error):
                self._activating.note_deferred(spec.model_id)
                log.warning(
                    "default model waits for its source",
                    model=spec.model_id,
                    reason=error.message,
                    retry_after_s=wait_s,
                )
                return False
            log.error("default model failed", model=spec.model_id, reason=error.message)
            self._activating.note_failed(spec.model_id, error.message)
        else:
            self._activating.note_completed(spec.model_id)
        return True
