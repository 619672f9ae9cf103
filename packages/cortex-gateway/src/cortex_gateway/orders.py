# SPDX-License-Identifier: GPL-3.0-or-later
"""Orders a neuron to move a model up or down, and finds out what became of that where its answer is lost.

The neuron is right about what it has: an order is carried out when its node says so, whatever came of the answer.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Literal

from cortex_core import logs
from cortex_core.control import LoadRequest, MoveAnswer, MoveRequest
from cortex_core.errors import (
    CortexError,
    NoHealthyNodeError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from cortex_core.http.client import Client, RefusedError
from cortex_core.node import ModelState, ModelStatus
from cortex_gateway.fleet import Fleet
from cortex_gateway.poller import Poller
from cortex_gateway.view import Place

log = logs.get(__name__)

Verb = Literal["load", "wake", "reload", "sleep", "unload"]

# A load from a slow disk or network takes long; so does copying weights after work that is not ours.
MOST_S: dict[Verb, float] = {
    "load": 3600.0,
    "wake": 3600.0,
    "reload": 3600.0,
    "sleep": 900.0,
    "unload": 900.0,
}
# After so many looks in a row at a node whose model neither comes nor goes, no answer is to be expected.
MOST_LOOKS = 3
# Looks in a burst, as when many answers are lost at once, are one: a neuron may not have got to the order yet.
APART_S = 0.5
# How soon a look of the poller's is noticed.
NOTICED_S = 0.05
# How often a node is looked at whose answer was lost, and whose model is on its way.
WATCH_S = 0.25

_UP: frozenset[str] = frozenset({ModelStatus.LOADED})
_GONE = "unloaded"
# What the model is when an order was carried out.
_GOALS: dict[Verb, frozenset[str]] = {
    "load": _UP,
    "wake": _UP,
    "reload": _UP,
    "sleep": frozenset({ModelStatus.SLEEPING, _GONE}),
    "unload": frozenset({_GONE}),
}
_PASSING = (ModelStatus.LOADING, ModelStatus.UNLOADING, ModelStatus.RECOVERING)
_LOST = (UpstreamConnectionError, UpstreamTimeoutError, UpstreamProtocolError)


class Orders:
    """Gives orders to neurons.

    Args:
        fleet: knows what they last said.
        clients: one per node.
        poller: looks at a node whose answer was lost.
    """

    def __init__(self, fleet: Fleet, clients: Mapping[str, Client], poller: Poller) -> None:
        self._fleet = fleet
        self._clients = clients
        self._poller = poller

    async def give(self, place: Place, verb: Verb, body: LoadRequest | MoveRequest) -> MoveAnswer:
        """Have it done; return when it is.

        Raises:
            RefusedError: the neuron refuses, in its own words.
            NoHealthyNodeError: the node, or its answer, was lost, and it was not done.
        """
        before = self._fleet.node(place[0]).state(place[1])
        answer = await self._ask(place, verb, body, before)
        if isinstance(answer, RefusedError) and answer.code is not None:
            raise answer
        if isinstance(answer, MoveAnswer):
            return answer
        # What has no code was said by something on the way there.
        reason = answer.message if answer else "no answer came"
        if answer is not None:
            await self._until_at_rest(place, verb, before)
        return self._find_out(place, verb, before, reason)

    async def _ask(
        self,
        place: Place,
        verb: Verb,
        body: LoadRequest | MoveRequest,
        before: ModelState | None,
    ) -> MoveAnswer | RefusedError | CortexError | None:
        """Its answer; None: none is to be expected any more."""
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(_try(self._clients[place[0]], verb, body))
            watching = tasks.create_task(self._until_silent(place, verb, before))
            await asyncio.wait({asking, watching}, return_when=asyncio.FIRST_COMPLETED)
            asking.cancel()
            watching.cancel()
        return asking.result() if not asking.cancelled() else None

    async def _until_silent(self, place: Place, verb: Verb, before: ModelState | None) -> None:
        """Until the node is down, or has neither done anything nor said so for some looks."""
        looks, counted_s = 0, time.monotonic()
        while looks < MOST_LOOKS and self._fleet.node(place[0]).is_up:
            await asyncio.sleep(NOTICED_S)
            node = self._fleet.node(place[0])
            seen_s = node.last_seen_s or counted_s
            if _is_passing(node.state(place[1]), verb, before):
                looks, counted_s = 0, seen_s
            elif seen_s - counted_s >= APART_S:
                looks, counted_s = looks + 1, seen_s

    async def _until_at_rest(self, place: Place, verb: Verb, before: ModelState | None) -> None:
        """Until the order is carried out, or the node is down, or has said for a while that the model neither comes nor goes.

        For a while, since it may hear of the order after its answer was lost. One look that fails says nothing.
        """
        rests_s: float | None = None
        while True:
            await self._poller.poll(place[0])
            node, now_s = self._fleet.node(place[0]), time.monotonic()
            state = node.state(place[1])
            is_known = not node.misses and not _is_passing(state, verb, before)
            if not node.is_up or (is_known and _is_done(state, verb, before)):
                return
            rests_s = (rests_s or now_s) if is_known else None
            if rests_s is not None and now_s - rests_s >= APART_S:
                return
            await asyncio.sleep(WATCH_S)

    def _find_out(
        self, place: Place, verb: Verb, before: ModelState | None, reason: str
    ) -> MoveAnswer:
        node = self._fleet.node(place[0])
        state = node.state(place[1])
        status = state.status if state else _GONE
        if not node.is_up or node.misses or not _is_done(state, verb, before):
            reason = f"{place[0]} was lost during the {verb}: {reason}"
            raise NoHealthyNodeError(model=place[1], reason=reason)
        log.warning("answer lost", node=place[0], model=place[1], status=status, reason=reason)
        return MoveAnswer(status=status, model_id=place[1])


async def _try(
    client: Client, verb: Verb, body: LoadRequest | MoveRequest
) -> MoveAnswer | RefusedError | CortexError:
    # An error is returned and not raised: from a task group it would come wrapped.
    try:
        path = f"/models/{verb}"
        return await client.ask("POST", path, MoveAnswer, body, timeout_s=MOST_S[verb])
    except (RefusedError, *_LOST) as error:
        return error


def _is_passing(state: ModelState | None, verb: Verb, before: ModelState | None) -> bool:
    """Whether it is on its way. One that is to sleep says so from the first; what it took is new when it does."""
    if state is None:
        return False
    if verb == "sleep" and state.status == ModelStatus.SLEEPING:
        return before is not None and state.sleep_s == before.sleep_s
    return state.status in _PASSING


def _is_done(state: ModelState | None, verb: Verb, before: ModelState | None) -> bool:
    """Whether it is what it was to be. One that serves was reloaded where its load took other time than the last."""
    if state is None:
        return _GONE in _GOALS[verb]
    if verb == "reload" and before is not None and state.load_s == before.load_s:
        return False
    return state.status in _GOALS[verb]
