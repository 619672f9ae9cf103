# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds a request its place: plan, do what the plan says, plan again."""

import time
from typing import Any, assert_never

from cortex_core import errors, logs
from cortex_core.catalogue import Catalogue
from cortex_core.errors import CortexError, ShuttingDownError
from cortex_gateway.config import Config
from cortex_gateway.fleet import Decided, Fleet
from cortex_gateway.loader import Loader
from cortex_gateway.routing import POLICIES
from cortex_gateway.routing.plan import NOBODY, Decision, Load, Refuse, Serve, Wait, plan
from cortex_gateway.turn import Turn

log = logs.get(__name__)

_REFUSALS: dict[str, type[CortexError]] = {
    kind.code: kind
    for kind in (
        errors.ModelNotFoundError,
        errors.ModelInfeasibleError,
        errors.ModelRecoveringError,
        errors.NoHealthyNodeError,
        errors.LoadFailedError,
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

    async def place(self, turn: Turn) -> Serve:
        """Where the request is served. It is stale after the next await.

        Raises:
            CortexError: it cannot be served, or not now.
        """
        while True:
            decision = self._plan(turn)
            match decision:
                case Serve():
                    return decision
                case Load():
                    await self._hold(turn, decision)
                case Wait():
                    await self._hold(turn, decision)
                case Refuse():
                    self._note(turn, "refuse", decision.node, decision.reason)
                    raise _error(decision)
                case _:
                    assert_never(decision)

    def elsewhere(self, turn: Turn, served: Serve, reason: str) -> Serve | None:
        """Another ready replica, once, and never after the answer has begun; None: there is none."""
        if turn.has_moved or turn.exchange.status is not None:
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
        )

    async def _hold(self, turn: Turn, decision: Load | Wait) -> None:
        began_s = time.monotonic()
        deadline_s = turn.began_s + self._load_wait_s
        if turn.decision == "serve":
            turn.decision = "load" if isinstance(decision, Load) else "wait"
        try:
            if isinstance(decision, Load):
                await self._loader.load(decision, deadline_s)
            else:
                await self._loader.wait(decision, deadline_s)
        except CortexError as error:
            self._note(turn, turn.decision, decision.node, error.message)
            # Beside replicas that are full: one of them has room by now, or refuses with its own numbers.
            turn.may_hold = False
            if isinstance(error, ShuttingDownError) or not isinstance(self._plan(turn), Serve):
                raise
        finally:
            turn.waited_s += time.monotonic() - began_s
            turn.exchange.notes["load_wait_s"] = round(turn.waited_s, 4)

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


def _error(refuse: Refuse) -> CortexError:
    facts: dict[str, Any] = {"model": refuse.model, "reason": refuse.reason}
    if refuse.node is not None:
        facts["node"] = refuse.node
    if refuse.kind is not None:
        facts["load_kind"] = refuse.kind
    return _REFUSALS[refuse.code](**facts)
