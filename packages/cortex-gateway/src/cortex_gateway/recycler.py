# SPDX-License-Identifier: GPL-3.0-or-later
"""Has idle engines reloaded, one after the other, where `defrag_after_cycles` says so."""

import asyncio
import time
from collections.abc import Callable

from cortex_core import logs
from cortex_core.catalogue import Catalogue
from cortex_core.errors import CortexError, ShuttingDownError
from cortex_gateway.config import EvictionSettings
from cortex_gateway.defrag import cycles_of, find_fragmented, find_reloads
from cortex_gateway.fleet import Fleet
from cortex_gateway.loader import Loader
from cortex_gateway.routing.plan import Wake

log = logs.get(__name__)


class Recycler:
    """Carries out what `defrag` says. The count of cycles is the neuron's, and starts again with the first reload.

    Args:
        fleet: what is known.
        catalogue: what is declared.
        loader: has models reloaded.
        rules: after how many cycles.
        on_reloaded: told model and node of each.
    """

    def __init__(
        self,
        fleet: Fleet,
        catalogue: Catalogue,
        loader: Loader,
        rules: EvictionSettings,
        on_reloaded: Callable[[str, str], None],
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._loader = loader
        self._rules = rules
        self._on_reloaded = on_reloaded
        # What failed once is not tried again before something has changed there.
        self._failed: dict[str, int] = {}

    def declare(self, catalogue: Catalogue) -> None:
        """This is declared from now on."""
        self._catalogue = catalogue

    async def run(self, interval_s: float) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.recycle()
            except Exception:  # a fault of ours must not end the gateway
                log.exception("looking for what to reload failed")

    async def recycle(self) -> None:
        """Reload each idle engine, once, of the nodes that are due; node by node, so that most of the fleet serves."""
        for node in find_fragmented(self._fleet.view(), self._rules):
            # It may have left, or been drained, while another was seen to.
            if node not in find_fragmented(self._fleet.view(), self._rules):
                continue
            cycles = cycles_of(self._fleet.node(node))
            if self._failed.get(node) != cycles and not await self._recycle(node):
                self._failed[node] = cycles

    async def _recycle(self, node: str) -> bool:
        """False: a reload failed, and what is left of the node was let be."""
        for planned in find_reloads(self._fleet.view(), self._catalogue, node):
            # It may have got work while another was reloaded.
            found = find_reloads(self._fleet.view(), self._catalogue, node)
            wanted = next((each for each in found if each.place == planned.place), None)
            if wanted is not None and not await self._reload(wanted, planned.reason):
                return False
        return True

    async def _reload(self, wanted: Wake, reason: str) -> bool:
        began_s = time.monotonic()
        try:
            with self._fleet.moving(wanted.place):
                await self._loader.reload(wanted)
        except ShuttingDownError:
            return False
        except CortexError as error:
            log.warning(
                "engine not reloaded", model=wanted.model, node=wanted.node, reason=error.message
            )
            return False
        self._on_reloaded(wanted.model, wanted.node)
        log.info(
            "engine reloaded",
            model=wanted.model,
            node=wanted.node,
            reason=reason,
            duration_s=round(time.monotonic() - began_s, 3),
        )
        return True
