# SPDX-License-Identifier: GPL-3.0-or-later
"""Has models loaded and woken, once however many ask, and holds those who wait for one.

The neuron owns the answer to "is it loaded": it is asked to have the model loaded, whatever it has now. A waiter that
leaves does not end a load; a failure is told to everyone who waits, and the next request tries anew. Where others have
to make room, who they are is asked again after each step.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from cortex_core import logs
from cortex_core.catalogue import Catalogue
from cortex_core.control import (
    LoadRequest,
    ModelSpec,
    MoveRequest,
    PlanAnswer,
    PlanRequest,
)
from cortex_core.errors import (
    BusyError,
    CortexError,
    FleetError,
    InsufficientVramError,
    InternalError,
    LoadFailedError,
    ModelLoadingError,
    ModelNotFoundError,
    NoHealthyNodeError,
    ShuttingDownError,
    SpecConflictError,
)
from cortex_core.http.client import Client, RefusedError
from cortex_core.node import ModelStatus
from cortex_gateway.config import EvictionSettings
from cortex_gateway.declared import find_entry
from cortex_gateway.displacer import Displacer
from cortex_gateway.eviction import Blocked, Room
from cortex_gateway.fleet import Fleet
from cortex_gateway.orders import WATCH_S, Orders
from cortex_gateway.placement import room_at
from cortex_gateway.poller import Poller
from cortex_gateway.residency import drains_s
from cortex_gateway.routing.plan import Load, Queue, Wait, Wake
from cortex_gateway.view import Needs, Place

log = logs.get(__name__)

# The node of a queue, which is for none.
NOWHERE = ""
_PASSING = (ModelStatus.LOADING, ModelStatus.UNLOADING)

# How soon room that others had is noticed.
ROOM_S = 0.05
# What a neuron needs to say how large a model is, from its files or what it measured; it fetches nothing for that.
PLAN_S = 5.0
# Kinds of refusal that this node will always give, where another might not.
_NEVER = frozenset(
    {"tp_infeasible", "insufficient_vram", "multi_host_unsupported", "unknown_harness"}
)


class OnUp(Protocol):
    """Told of each model that came up: how, and how long it took."""

    def __call__(self, model: str, node: str, seconds: float, *, woken: bool) -> None:
        """It serves now."""


class _Flight:
    """One load or wake, or something else that is watched, and how it ended."""

    def __init__(self, *, is_ours: bool) -> None:
        self.is_ours = is_ours
        self.ended = asyncio.Event()
        # Who waits for it is to look again. When they were told, it is another one.
        self.left = asyncio.Event()
        self.error: CortexError | None = None
        self.task: asyncio.Task[None] | None = None


class Loader:
    """Carries out Load, Wake, Wait and Queue.

    Args:
        fleet: told which loads are under way.
        catalogue: what is declared.
        clients: one per node.
        poller: looks at a node at once after its load, so that the next plan sees the model.
        orders: has neurons load and wake.
        displacer: carries out who has to make room.
        rules: how models make room for others.
        tasks: where loads run.
        on_up: told of each model that came up.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        catalogue: Catalogue,
        clients: Mapping[str, Client],
        poller: Poller,
        orders: Orders,
        displacer: Displacer,
        rules: EvictionSettings,
        tasks: asyncio.TaskGroup,
        on_up: OnUp,
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._clients = clients
        self._poller = poller
        self._orders = orders
        self._displacer = displacer
        self._rules = rules
        self._tasks = tasks
        self._on_up = on_up
        self._flights: dict[Place, _Flight] = {}
        self._closed = False

    def declare(self, catalogue: Catalogue) -> None:
        """This is declared from now on."""
        self._catalogue = catalogue

    async def bring_up(self, wanted: Load | Wake, deadline_s: float) -> None:
        """Return when the model is up, by whomever, or when another look is worth while.

        Args:
            wanted: what and where.
            deadline_s: monotonic seconds.

        Raises:
            LoadFailedError: it failed for good.
            BusyError: it did not come up, and may do so later; or the deadline has passed; or the gateway stops.
        """
        flight = self._join(wanted.place, lambda: self._bring_up(wanted), ours=wanted)
        await self._wait(
            flight, deadline_s, lambda: self._still_loading(wanted.place, wanted.model)
        )

    async def wait(self, wait: Wait, deadline_s: float) -> None:
        """Return when the model's state has changed. Raises as `bring_up`."""
        place = (wait.node, wait.model_id)
        flight = self._join(place, lambda: self._watch(place))
        await self._wait(flight, deadline_s, lambda: self._still_loading(place, wait.model))

    async def queue(self, queue: Queue, deadline_s: float, still_waits: Callable[[], bool]) -> None:
        """Return when `still_waits` says no; it is asked often, once for all who wait for the model.

        Raises:
            InsufficientVramError: the deadline has passed.
            ShuttingDownError: the gateway stops.
        """
        flight = self._join((NOWHERE, queue.model), lambda: _until_over(still_waits))
        error = InsufficientVramError(model=queue.model, reason=queue.reason)
        await self._wait(flight, deadline_s, lambda: error)

    async def reload(self, wanted: Wake) -> None:
        """Have a model that serves do so in a new process; who asks for it meanwhile waits for that.

        Raises:
            LoadFailedError, BusyError: as `bring_up`.
        """
        flight = self._join(wanted.place, lambda: self._reload(wanted), ours=wanted)
        await flight.ended.wait()
        if flight.error is not None:
            raise flight.error

    def lose(self, node: str) -> None:
        """The node is down: everyone who waits for a load there is told."""
        for place in [place for place in self._flights if place[0] == node]:
            self._abandon(place, _lost(place, "it stopped answering"))

    def leave(self, node: str) -> None:
        """The node gets nothing new any more: who waits for a load there looks for another place. What is ours goes on."""
        for place, flight in list(self._flights.items()):
            if place[0] == node and flight.is_ours:
                flight.left.set()
                flight.left = asyncio.Event()
            elif place[0] == node:
                self._abandon(place, None)

    async def look(self, node: str) -> None:
        """Have a node looked at now."""
        await self._poller.poll(node)

    def close(self) -> None:
        """The gateway stops: everyone who waits is told, and nothing more is begun."""
        self._closed = True
        for place in list(self._flights):
            self._abandon(place, ShuttingDownError(daemon="gateway"))

    def _join(
        self,
        place: Place,
        work: Callable[[], Coroutine[Any, Any, None]],
        ours: Load | Wake | None = None,
    ) -> _Flight:
        if self._closed:
            raise ShuttingDownError(daemon="gateway")
        flight = self._flights.get(place)
        if flight is None:
            flight = self._flights[place] = _Flight(is_ours=ours is not None)
            if ours is not None:  # now, not when the task first runs: others plan in between
                self._fleet.note_load_begun(place, ours.claims_mb)
                self._fleet.note_leaving(place, [who.place for who in ours.displaces])
            flight.task = self._tasks.create_task(self._fly(place, flight, work()))
        return flight

    async def _wait(
        self, flight: _Flight, deadline_s: float, late: Callable[[], CortexError]
    ) -> None:
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                await flight.left.wait()
        except TimeoutError:
            raise late() from None
        if flight.error is not None:
            raise flight.error

    async def _fly(self, place: Place, flight: _Flight, work: Coroutine[Any, Any, None]) -> None:
        error: CortexError | None = None
        try:
            await work
        except CortexError as failed:
            error = failed
        except Exception:  # a fault of ours: those who wait must not wait on
            log.exception("load broke", node=place[0], model=place[1])
            error = InternalError(daemon="gateway", request_id="none")
        self._end(place, flight, error)

    def _end(self, place: Place, flight: _Flight, error: CortexError | None) -> None:
        if (
            not flight.ended.is_set()
        ):  # else it was abandoned, and its place may be another's by now
            flight.error = error
            flight.ended.set()
            flight.left.set()
            del self._flights[place]
            if flight.is_ours:
                self._fleet.note_load_ended(place)

    def _abandon(self, place: Place, error: CortexError | None) -> None:
        flight = self._flights[place]
        self._end(place, flight, error)
        if flight.task:
            flight.task.cancel()

    async def _bring_up(self, wanted: Load | Wake) -> None:
        try:
            if not await self._ensure_room(wanted):
                return
            began_s = time.monotonic()
            already = await self._ask(wanted)
        except CortexError as error:
            log.warning("load failed", model=wanted.model, node=wanted.node, reason=error.message)
            await self._poller.poll(wanted.node)
            raise
        # before those who wait are woken, so that their plan finds it
        await self._poller.poll(wanted.node)
        if not already:
            self._note_up(wanted, time.monotonic() - began_s)

    def _note_up(self, wanted: Load | Wake, took_s: float) -> None:
        log.info(
            "model is up",
            model=wanted.model,
            node=wanted.node,
            decision="wake" if isinstance(wanted, Wake) else "load",
            reason=wanted.reason,
            load_s=round(took_s, 3),
        )
        self._on_up(wanted.model, wanted.node, took_s, woken=isinstance(wanted, Wake))

    async def _ensure_room(self, wanted: Load | Wake) -> bool:
        """Have those displaced who have to go; False: it cannot be here now, so that another look is worth while."""
        if isinstance(wanted, Load):
            await self._ensure_needs(wanted)
        for _ in range(len(self._fleet.node(wanted.node).models) * 2 + 1):
            room = self._find_room(wanted)
            if not isinstance(room, Room):
                log.info("no room", model=wanted.model, node=wanted.node, reason=room.reason)
                await asyncio.sleep(ROOM_S)  # who looks again and again does so no faster than this
                return False
            self._fleet.note_load_begun(wanted.place, room.claims_mb)
            self._fleet.note_leaving(wanted.place, [who.place for who in room.displaces])
            if not room.displaces:
                return True
            within_s = drains_s(self._fleet.view(), wanted.model, self._rules, time.monotonic())
            if not await self._displacer.displace(room.displaces[0], wanted.model, within_s):
                self._fleet.note_leaving(wanted.place, ())
        raise InsufficientVramError(
            model=wanted.model, reason=f"{wanted.node}: memory was not freed as it should be"
        )

    def _find_room(self, wanted: Load | Wake) -> Room | Blocked:
        view, now_s = self._fleet.view(), time.monotonic()
        node = view.node(wanted.node)
        if isinstance(wanted, Load) and wanted.place in view.needs:
            never = view.needs[wanted.place].never
            if never is not None:
                return Blocked(by="pinned", reason=never)
        return room_at(view, self._catalogue, node, wanted.place[1], self._rules, now_s)

    async def _ensure_needs(self, load: Load) -> None:
        """Ask the neuron, once, what the model would take there: nobody knows better."""
        entry = find_entry(self._catalogue, load.model)
        if entry is None or not entry.uses_devices or load.place in self._fleet.view().needs:
            return
        wanted = PlanRequest(vram_mb=entry.vram_mb, **_fields(load.spec))
        client = self._clients[load.node]
        try:
            answer = await client.ask("POST", "/models/plan", PlanAnswer, wanted, timeout_s=PLAN_S)
        except (RefusedError, CortexError):  # the load will tell what is the matter
            answer = PlanAnswer(model_id=load.spec.model_id, fits=True)
        self._fleet.note_needs(load.place, read_needs(answer))

    async def _ask(self, wanted: Load | Wake) -> bool:
        """Whether nothing was brought up: it was up already, or does not sleep there any more."""
        try:
            if isinstance(wanted, Wake):
                order = MoveRequest(model_id=wanted.model_id)
                return (await self._orders.give(wanted.place, "wake", order)).already
            body = LoadRequest(**_fields(wanted.spec))
            return (await self._orders.give(wanted.place, "load", body)).already
        except RefusedError as refused:
            if isinstance(wanted, Wake) and refused.code == ModelNotFoundError.code:
                return True  # it went as one sleeper too many: who looks again has it loaded
            if refused.code == SpecConflictError.code and await self._is_there(wanted.place):
                return True  # somebody else has it brought up otherwise: who looks again finds that
            if refused.code == "insufficient_vram":  # what it said of its needs was too little
                self._fleet.forget_needs(wanted.place)
            raise _read_refusal(wanted, refused) from None

    async def _is_there(self, place: Place) -> bool:
        node, model_id = place
        await self._poller.poll(node)
        state = self._fleet.node(node).state(model_id)
        return state is not None and state.status != ModelStatus.FAILED

    async def _reload(self, wanted: Wake) -> None:
        order = MoveRequest(model_id=wanted.model_id)
        try:
            await self._orders.give(wanted.place, "reload", order)
        except RefusedError as refused:
            raise _read_refusal(wanted, refused) from None
        finally:
            await self._poller.poll(wanted.node)

    async def _watch(self, place: Place) -> None:
        node, model_id = place
        while True:
            await self._poller.poll(node)
            state = self._fleet.node(node).state(model_id)
            is_coming = model_id in self._fleet.node(node).coming
            if not is_coming and (state is None or state.status not in _PASSING):
                return
            await asyncio.sleep(WATCH_S)

    def _still_loading(self, place: Place, model: str) -> ModelLoadingError:
        state = self._fleet.node(place[0]).state(place[1])
        progress = state.progress if state else None
        eta_s = progress.eta_s if progress else self._fleet.takes_s(place, "load")
        return ModelLoadingError(
            model=model,
            node=place[0],
            eta_s=eta_s,
            retry_after_s=eta_s,
            phase=progress.phase if progress else None,
        )


def _lost(place: Place, reason: str) -> NoHealthyNodeError:
    return NoHealthyNodeError(
        model=place[1], reason=f"{place[0]} was lost during the load: {reason}"
    )


async def _until_over(still_waits: Callable[[], bool]) -> None:
    while still_waits():  # noqa: ASYNC110 - it is many things that may end it, and the fleet wakes nobody
        await asyncio.sleep(ROOM_S)


def read_needs(answer: PlanAnswer) -> Needs:
    """What a neuron's plan says of a model's size there."""
    if answer.kind in _NEVER:
        return Needs(never=answer.reason or answer.kind)
    if answer.source == "none":
        return Needs()
    return Needs(devices_mb={device.index: device.needed_mb for device in answer.devices})


def _fields(spec: ModelSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


def _read_refusal(load: Load | Wake, refused: RefusedError) -> BusyError | FleetError:
    """A neuron's refusal to load, as the client is told of it: what may pass is 503, what will not is 502."""
    if refused.code == "insufficient_vram":
        return InsufficientVramError(model=load.model, reason=f"{load.node}: {refused.message}")
    # 401: it wants another secret, which an operator mends; a source that does not answer is a 422 that may pass
    if refused.status in (401, 503) or refused.retry_after_s is not None:
        return NoHealthyNodeError(
            model=load.model,
            reason=f"{load.node}: {refused.message}",
            retry_after_s=refused.retry_after_s,
        )
    kind = refused.facts.get("load_kind") or refused.code or f"status_{refused.status}"
    reason = refused.facts.get("reason") or refused.message
    return LoadFailedError(model=load.model, node=load.node, load_kind=kind, reason=reason)
