# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds a request its place: plan, do what the plan says, plan again."""

import asyncio
import time
from contextlib import ExitStack
from typing import Any, Protocol

from cortex_core import errors, logs
from cortex_core.catalogue import Catalogue
from cortex_core.errors import (
    CortexError,
    InsufficientVramError,
    ModelNotLoadedError,
    NoHealthyNodeError,
    ShuttingDownError,
)
from cortex_gateway.candidates import name_nodes, name_replicas
from cortex_gateway.config import Config
from cortex_gateway.fleet import Decided, Fleet
from cortex_gateway.journal import Candidate
from cortex_gateway.keeping import Keeper
from cortex_gateway.loader import Loader
from cortex_gateway.routing import POLICIES, SESSION_POLICIES
from cortex_gateway.routing.counting import Counters, find_counters
from cortex_gateway.routing.plan import (
    NOBODY,
    Decision,
    Load,
    Queue,
    Refuse,
    Serve,
    Wait,
    Wake,
    find_id,
    plan,
)
from cortex_gateway.routing.policy import Policy
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

# A request, or a load, may be what kills engines and machines, so it does not go round the fleet: after so many losses it is
# tried again.
MOST_LOSSES = 2

# Steps of a request's story that choose between no nodes.
_NO_CHOICE = ("failed", "elsewhere", "fallback")

# The model cannot serve, now or ever, and waiting is not known to help: what has fallbacks is served by them.
_FALLING = frozenset(
    kind.code
    for kind in (
        errors.ModelNotFoundError,
        errors.ModelInfeasibleError,
        errors.ModelRecoveringError,
        errors.NoHealthyNodeError,
        errors.LoadFailedError,
        errors.EngineDiedError,
        errors.UpstreamConnectionError,
        errors.UpstreamProtocolError,
        errors.UpstreamTimeoutError,
    )
)


class Counts(Protocol):
    """Told of what becomes of requests before they are served."""

    def note_retry(self, model: str, node: str, *, lost: bool) -> None:
        """A node refused a request, or lost it, and another is asked."""

    def note_fallback(self, model: str, fallback: str, code: str) -> None:
        """Another model serves in a model's place, since that one ended in an error of this code."""


class Dispatcher:
    """Carries out decisions.

    Args:
        fleet: what is known of the nodes; keeps what was decided.
        catalogue: what is declared.
        loader: carries out what a plan says must happen first.
        config: policy and load wait.
        counts: told of requests that go elsewhere.
    """

    def __init__(
        self, fleet: Fleet, catalogue: Catalogue, loader: Loader, config: Config, counts: Counts
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._loader = loader
        self._counts = counts
        self._policy = config.gateway.policy
        self._load_wait_s = config.loading.load_wait_s
        self._eviction = config.eviction
        self._keeper = Keeper(fleet, config.loading)
        self._seen = fleet.view()  # what the last decision rests on

    def declare(self, catalogue: Catalogue) -> None:
        """This is declared from now on."""
        self._catalogue = catalogue

    async def place(self, turn: Turn) -> Serve:
        """Where the request is served: by its model, else by what falls in for it. It is stale after the next await.

        Raises:
            CortexError: it cannot be served, or not now.
        """
        while True:
            try:
                return await self._place(turn)
            except CortexError as error:
                if self.fall_back(turn, error):
                    continue
                # A fallback that may serve later is worth a retry; else it is the model asked for that matters.
                if turn.failed is None or error.retry_after_s is not None:
                    raise
                raise turn.failed from None

    def find_counters(self, turn: Turn) -> Counters | None:
        """Who may count its tokens, though no node has its model up; None: nobody."""
        return find_counters(self._fleet.view(), self._catalogue, turn.model)

    def fall_back(self, turn: Turn, error: CortexError) -> bool:
        """Have the request ask for what falls in for a model that ended in this error; False: nothing does."""
        if turn.has_begun or error.code not in _FALLING:
            return False
        model_id = find_id(self._fleet.view(), self._catalogue, turn.model)
        if turn.fallbacks is None:
            turn.fallbacks = self._catalogue.fallbacks_of(model_id)
            turn.failed = error
            # An upstream's own words do not say it: its header did.
            error.retry_after_s = error.retry_after_s or error.default_retry_after_s
        if not turn.fallbacks:
            return False
        fallback = turn.fallbacks.pop(0)
        self._counts.note_fallback(model_id, fallback, error.code)
        self._tell(turn, "fallback", None, f"{fallback} in its place: {error.message}")
        log.warning(
            "fell back",
            request_id=turn.exchange.request_id,
            model=model_id,
            served_model=fallback,
            code=error.code,
            reason=error.message,
        )
        turn.ask_for(fallback)
        return True

    async def _place(self, turn: Turn) -> Serve:
        with ExitStack() as held:
            while True:
                decision = self._plan(turn)
                if isinstance(decision, Serve):
                    return decision
                if isinstance(decision, Refuse):
                    self._tell(turn, "refuse", decision.node, decision.reason)
                    self._note(turn, "refuse", decision.node, decision.reason)
                    raise turn.mishap or error_of(decision)
                if not turn.dialect.may_load:
                    return self._place_now(turn, decision)
                await self._hold(turn, decision, held)

    def _place_now(self, turn: Turn, held: Held) -> Serve:
        """A replica, full or not, for a request that brings nothing up. Raises ModelNotLoadedError: there is none."""
        turn.may_hold = False
        found = self._plan(turn)
        if not isinstance(found, Serve):
            self._tell(turn, "refuse", held.node, held.reason)
            self._note(turn, "refuse", held.node, held.reason)
            raise ModelNotLoadedError(model=held.model)
        return found

    def elsewhere(self, turn: Turn, served: Serve, reason: str, *, lost: bool) -> Serve | None:
        """Another ready replica, each once, and never after the answer has begun; None: there is none.

        `lost`: the request was lost there, and not refused. Of those there is a bound.
        """
        if turn.has_begun:
            return None
        turn.passed |= {served.node}
        turn.losses += lost
        if turn.losses > MOST_LOSSES:
            return None
        other = self._plan(turn, avoid=turn.passed)
        if not isinstance(other, Serve):
            return None
        self._counts.note_retry(served.model, served.node, lost=lost)
        self._tell(turn, "elsewhere", served.node, reason)
        log.warning(
            "sent elsewhere", request_id=turn.exchange.request_id, node=served.node, reason=reason
        )
        return other

    async def without(self, turn: Turn, served: Serve) -> Serve | None:
        """Another ready replica, after a node said that it has the model no more; None: its place is to be found anew.

        The node is looked at first: it was started again, or told by somebody else to let the model go.
        """
        await self._loader.look(served.node)
        return self.elsewhere(turn, served, "it has the model no more", lost=False)

    def note_served(self, turn: Turn, served: Serve) -> None:
        """The request is being sent there."""
        turn.exchange.notes.update(node=served.node, model=served.model, decision=turn.decision)
        turn.record.note_served(served.model, served.node)
        turn.record.add(
            time.monotonic(),
            "serve",
            turn.model,
            served.reason,
            served.node,
            lambda: self._find_replicas(served),
        )
        self._note(turn, turn.decision, served.node, served.reason)

    def _plan(self, turn: Turn, avoid: frozenset[str] = NOBODY) -> Decision:
        self._seen = self._fleet.view()
        return plan(
            self._seen,
            self._catalogue,
            turn.model,
            self._choose(turn),
            avoid,
            shunned=turn.shunned,
            may_hold=turn.may_hold,
            eviction=self._eviction,
            now_s=time.monotonic(),
        )

    def _choose(self, turn: Turn) -> Policy:
        by_session = SESSION_POLICIES.get(self._policy)
        return by_session(turn.session) if by_session else POLICIES[self._policy]

    async def _hold(self, turn: Turn, decision: Held, held: ExitStack) -> None:
        began_s = time.monotonic()
        self._tell(turn, type(decision).__name__.lower(), decision.node, decision.reason)
        self._count(turn, decision, held, began_s)
        if turn.decision == "serve":
            turn.decision = _NAMES[type(decision)]
        try:
            await self._keep(turn, decision)
        except CortexError as error:
            self._tell(turn, "failed", decision.node, error.message)
            self._note(turn, turn.decision, decision.node, error.message)
            if self._tries_on(turn, decision, error):
                return
            # Beside replicas that are full: one of them has room by now, or refuses with its own numbers.
            turn.may_hold = False
            if isinstance(error, ShuttingDownError) or not isinstance(self._plan(turn), Serve):
                raise
        finally:
            turn.waited_s += time.monotonic() - began_s
            turn.record.load_wait_s = turn.waited_s
            turn.exchange.notes["load_wait_s"] = round(turn.waited_s, 4)

    def _tries_on(self, turn: Turn, decision: Held, error: CortexError) -> bool:
        """Whether another node may have the model, after one was lost or had no room, or the same, which has it after all."""
        passes = isinstance(error, NoHealthyNodeError | InsufficientVramError)
        if isinstance(decision, Queue) or not passes:
            return False
        turn.losses += 1
        turn.shunned |= {decision.node}
        turn.mishap = error
        if turn.losses > MOST_LOSSES or isinstance(self._plan(turn), Refuse):
            return False
        log.warning(
            "sent elsewhere",
            request_id=turn.exchange.request_id,
            node=decision.node,
            reason=error.message,
        )
        return True

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
            self._check_patience(turn, decision)
            await self._loader.bring_up(decision, deadline_s)

    def _check_patience(self, turn: Turn, decision: Wake | Load) -> None:
        """Raise InsufficientVramError where others were to make room for so long, and did not, that its wait is over."""
        began_s = turn.queued_s or turn.held_s or turn.began_s
        if decision.displaces and time.monotonic() - began_s >= self._eviction.max_wait_s:
            names = ", ".join(who.model for who in decision.displaces)
            reason = f"{names} works, and has the room"
            raise InsufficientVramError(model=decision.model, reason=reason)

    def _tell(self, turn: Turn, decision: str, node: str | None, reason: str) -> None:
        """Add a step to the request's story."""
        find = list if decision in _NO_CHOICE else lambda: self._find_nodes(turn)
        turn.record.add(time.monotonic(), decision, turn.model, reason, node, find)

    def _find_nodes(self, turn: Turn) -> list[Candidate]:
        """All nodes, as the last decision saw them."""
        model_id = find_id(self._seen, self._catalogue, turn.model)
        return name_nodes(self._seen, self._catalogue, model_id, self._eviction, time.monotonic())

    def _find_replicas(self, served: Serve) -> list[Candidate]:
        """Those that have the model, likewise."""
        return name_replicas(self._seen, self._catalogue, served.model_id)

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
