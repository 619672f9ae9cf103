# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves models down the ladder: lets their work end, then has them put to sleep or unloaded."""

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from cortex_core import logs
from cortex_core.control import MoveRequest
from cortex_core.errors import (
    CortexError,
    InsufficientVramError,
    NoHealthyNodeError,
)
from cortex_core.http.client import RefusedError
from cortex_gateway.eviction import Displace
from cortex_gateway.fleet import Fleet
from cortex_gateway.orders import Orders
from cortex_gateway.poller import Poller

log = logs.get(__name__)

# How soon the end of a model's work is noticed.
LOOK_S = 0.02


class Displacer:
    """Carries out Displace.

    Args:
        fleet: what is in flight.
        orders: has neurons put models to sleep and unload them.
        poller: looks at a node at once after a move, so that the next plan sees its memory.
        drain_s: seconds that a model's work has to end, where nobody waits for its room.
        on_evicted: told model and node of each.
    """

    def __init__(
        self,
        fleet: Fleet,
        orders: Orders,
        poller: Poller,
        drain_s: float,
        on_evicted: Callable[[str, str], None],
    ) -> None:
        self._fleet = fleet
        self._orders = orders
        self._poller = poller
        self._drain_s = drain_s
        self._on_evicted = on_evicted

    async def displace(self, who: Displace, model: str, within_s: float) -> bool:
        """Have one make room for another model. The fleet knows already that it leaves, so nothing new is sent to it.

        Returns:
            False: its work did not end in time, or an operator has pinned it meanwhile. It serves on, and who makes room
            is to be asked again.

        Raises:
            InsufficientVramError: its neuron keeps it.
            NoHealthyNodeError: the node was lost.
        """
        began_s = time.monotonic()
        if not await self._drained(who, within_s):
            log.info("model stays", model=who.model, node=who.node, reason=_why_it_stays(within_s))
            self._fleet.note_stayed(who.place, time.monotonic())
            return False
        if self._fleet.view().is_pinned(who.node, who.model_id, who.model):
            return False
        status = await self._move(who, model)
        await self._poller.poll(who.node)
        self._on_evicted(who.model, who.node)
        log.info(
            "model evicted",
            model=who.model,
            node=who.node,
            status=status,
            reason=f"room for {model}",
            duration_s=round(time.monotonic() - began_s, 3),
        )
        return True

    async def move(self, who: Displace) -> str:
        """Have a model asleep or unloaded, for nobody's sake. Nothing new is sent to it meanwhile.

        Returns:
            The status that it has then; `unloaded`: it is gone.

        Raises:
            InsufficientVramError: its work did not end in time, or its neuron keeps it.
            NoHealthyNodeError: the node was lost.
        """
        with self._fleet.moving(who.place):
            if not await self._drained(who, self._drain_s):
                reason = f"{who.model} has the room, and {_why_it_stays(self._drain_s)}"
                raise InsufficientVramError(model=who.model, reason=reason)
            status = await self._move(who, who.model)
            await self._poller.poll(who.node)
        return status

    async def run_idle(self, find: Callable[[], list[Displace]], interval_s: float) -> None:
        """Move those down that `find` names, again and again, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                for who in find():
                    if who in find():  # it may be in use, pinned or gone since another was moved
                        await self._move_idle(who)
            except Exception:  # a fault of ours must not end the gateway
                log.exception("looking for idle models failed")

    async def _move_idle(self, who: Displace) -> None:
        try:
            await self.move(who)
        except CortexError as error:
            log.warning("idle model stays", model=who.model, node=who.node, reason=error.message)
        else:
            self._on_evicted(who.model, who.node)
            log.info("model evicted", model=who.model, node=who.node, reason="idle")

    async def _drained(self, who: Displace, within_s: float) -> bool:
        """Whether its work has ended in time."""
        try:
            async with asyncio.timeout(within_s):
                while self._fleet.in_flight(who.place):  # noqa: ASYNC110 - the fleet is pure, and wakes nobody
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            return False
        return True

    async def _move(self, who: Displace, model: str) -> str:
        """The status that it has then. One that does not sleep after all is unloaded."""
        ways: list[Literal["sleep", "unload"]] = ["sleep", "unload"]
        for how in ways if who.how == "sleep" else ways[1:]:
            try:
                return await self._ask(who, how, model)
            except RefusedError as refused:
                if refused.code == "model_not_found":
                    break
                if refused.code != "cannot_sleep":
                    reason = f"{who.node}: {refused.message}"
                    raise InsufficientVramError(model=model, reason=reason) from None
        return "unloaded"

    async def _ask(self, who: Displace, how: Literal["sleep", "unload"], model: str) -> str:
        try:
            answer = await self._orders.give(who.place, how, MoveRequest(model_id=who.model_id))
        except NoHealthyNodeError as error:
            reason = f"{who.model} was to make room: {error.facts['reason']}"
            raise NoHealthyNodeError(model=model, reason=reason) from None
        return answer.status


def _why_it_stays(within_s: float) -> str:
    return f"its work did not end in {within_s:.0f} s"
