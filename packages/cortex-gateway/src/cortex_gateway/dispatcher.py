# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds a request its place: plan, do what the plan says, plan again."""

import asyncio
import time
from contextlib import ExitStack
from typing import Any

from cortex_core import errors, logs
from cortex_core.catalogue import Catalogue
from cortex_core.errors import CortexError, ModelNotLoadedError, ShuttingDownError
from cortex_gateway.config import Config
from cortex_gateway.fleet import Decided, Fleet
from cortex_gateway.keeping import Keeper
from cortex_gateway.loader import Loader
from cortex_gateway.routing import POLICIES
from cortex_gateway.routing.plan import (
    NOBODY,
    Decision,
    Load,
    Queue,
    Refuse,
    Serve,
    Wait,
    Wake,
    plan,
)
from cortex_gateway.turn import Turn

log = logs.get(__name__)

Held = Wait | Queue | Wake | Load
# What `x-cortex-decision` calls them.
_NAMES: dict[type, str] = {Wait: "wait", Queue: "wait", Wake: "wake", Load: "load"}

_REFUSALS: dict[str, type[CortexError]] = {
    kind.code: kind
    for kind in (
        errors.ModelNotFoundError,
        errors.ModelInfeasibleError,
        errors.ModelRecoveringError,
        errors.NoHealthyNodeError,
        errors.LoadFailedError,
        errors.InsufficientVramError,
    )
}


class Dispatcher:
    """Carries out decisions.

    Args:
        fleet: what is known of the nodes; keeps what was decided.
        catalogue: what is declared.
        loader: carries out what a plan says must happen first.
        config: policy and load wait.
    """

    def __init__(self, fleet: Fleet, catalogue: Catalogue, loader: Loader, config: Config) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._loader = loader
        self._choose = POLICIES[config.gateway.policy]
        self._load_wait_s = config.loading.load_wait_s
        self._eviction = config.eviction
        self._keeper = Keeper(fleet, config.loading)

    async def place(self, turn: Turn) -> Serve:
        """Where the request is served. It is stale after the next await.

        Raises:
            CortexError: it cannot be served, or not now.
        """
        with ExitStack() as held:
            while True:
                decision = self._plan(turn)
                if isinstance(decision, Serve):
                    return decision
                if isinstance(decision, Refuse):
                    self._note(turn, "refuse", decision.node, decision.reason)
                    raise error_of(decision)
                if not turn.dialect.may_load:
                    return self._place_now(turn, decision)
                await self._hold(turn, decision, held)

    def _place_now(self, turn: Turn, held: Held) -> Serve:
        """A replica, full or not, for a request that brings nothing up. Raises ModelNotLoadedError: there is none."""
        turn.may_hold = False
        found = self._plan(turn)
        if not isinstance(found, Serve):
            self._note(turn, "refuse", held.node, held.reason)
            raise ModelNotLoadedError(model=held.model)
        return found

    def elsewhere(self, turn: Turn, served: Serve, reason: str) -> Serve | None:
        """Another ready replica, once, and never after the answer has begun; None: there is none."""
        if turn.has_moved or (turn.exchange.status is not None and not turn.is_open):
            return None
        other = self._plan(turn, avoid=frozenset({served.node}))
        if not isinstance(other, Serve):
            return None
        turn.has_moved = True
        log.warning(
            "sent elsewhere", request_id=turn.exchange.request_id, node=served.node, reason=reason
        )
        return other

    def note_served(self, turn: Turn, served: Serve) -> None:
        """The request is being sent there."""
        turn.exchange.notes.update(node=served.node, model=served.model, decision=turn.decision)
        self._note(turn, turn.decision, served.node, served.reason)

    def _plan(self, turn: Turn, avoid: frozenset[str] = NOBODY) -> Decision:
        return plan(
            self._fleet.view(),
            self._catalogue,
            turn.model,
            self._choose,
            avoid,
            may_hold=turn.may_hold,
            eviction=self._eviction,
            now_s=time.monotonic(),
        )

    async def _hold(self, turn: Turn, decision: Held, held: ExitStack) -> None:
        began_s = time.monotonic()
        self._count(turn, decision, held, began_s)
        if turn.decision == "serve":
            turn.decision = _NAMES[type(decision)]
        try:
            await self._keep(turn, decision)
        except CortexError as error:
            self._note(turn, turn.decision, decision.node, error.message)
            # Beside replicas that are full: one of them has room by now, or refuses with its own numbers.
            turn.may_hold = False
            if isinstance(error, ShuttingDownError) or not isinstance(self._plan(turn), Serve):
                raise
        finally:
            turn.waited_s += time.monotonic() - began_s
            turn.exchange.notes["load_wait_s"] = round(turn.waited_s, 4)

    async def _keep(self, turn: Turn, decision: Held) -> None:
        """Carry it out, and keep the client meanwhile."""
        failed: CortexError | None = None
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keeper.run(turn, decision))
            try:
                await self._carry_out(turn, decision)
            except CortexError as error:  # raised below: from here it would come wrapped
                failed = error
            finally:
                keeping.cancel()
        if failed is not None:
            raise failed

    def _count(self, turn: Turn, decision: Held, held: ExitStack, now_s: float) -> None:
        """Have the fleet know that it waits, until it has its place."""
        if turn.held_s is None:
            turn.held_s = now_s
            held.enter_context(self._fleet.holding(decision.model))
        if isinstance(decision, Queue) and turn.queued_s is None:
            turn.queued_s = now_s
            queueing = self._fleet.queueing(decision.model, turn.held_s, decision.nodes)
            held.enter_context(queueing)

    async def _carry_out(self, turn: Turn, decision: Held) -> None:
        deadline_s = turn.began_s + self._load_wait_s
        if isinstance(decision, Wait):
            await self._loader.wait(decision, deadline_s)
        elif isinstance(decision, Queue):
            deadline_s = min(deadline_s, (turn.queued_s or 0.0) + self._eviction.max_wait_s)
            await self._loader.queue(
                decision, deadline_s, lambda: isinstance(self._plan(turn), Queue)
            )
        else:
            await self._loader.bring_up(decision, deadline_s)

    def _note(self, turn: Turn, decision: str, node: str | None, reason: str) -> None:
        self._fleet.note_decision(
            Decided(
                at=time.time(),
                request_id=turn.exchange.request_id,
                model=turn.model,
                decision=decision,
                node=node,
                reason=reason,
                waited_s=round(turn.waited_s, 3),
            )
        )


def error_of(refuse: Refuse) -> CortexError:
    """The error that a client is told."""
    facts: dict[str, Any] = {"model": refuse.model, "reason": refuse.reason}
    if refuse.node is not None:
        facts["node"] = refuse.node
    if refuse.kind is not None:
        facts["load_kind"] = refuse.kind
    return _REFUSALS[refuse.code](**facts)
