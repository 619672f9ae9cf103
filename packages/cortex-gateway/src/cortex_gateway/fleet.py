# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the fleet now: nodes, their models, what is in flight.

`Fleet` is the one owner of that. It changes in synchronous methods alone, which are handed the time; everybody else
gets a frozen `FleetView`, which is stale after the next await. Pure.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from cortex_core.discovery import Discovery
from cortex_core.node import Health, ModelActivity, ModelState, ModelStatus
from cortex_core.sources import read_model_name
from cortex_gateway.routing.policy import Replica

# Enough to see what just happened; an operator who wants more has the log.
KEPT_DECISIONS = 100

Place = tuple[str, str]  # a node's name, and the id of a model on it
Claims = Mapping[int, int]  # MiB by index of the device
EVERYWHERE = "*"  # as a pin's node


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at a neuron found. `discovery` and `health` are None where they were not asked for, or failed."""

    models: tuple[ModelState, ...]
    discovery: Discovery | None = None
    health: Health | None = None


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One node, as last seen.

    Attributes:
        is_up: it answers; false also for one that never did.
        is_discovered: `discovery` is of the neuron that runs there now, not of an earlier one.
        discovery: None: it never told.
        models: resident when last seen; of a node that is down that is history.
        misses: failed looks in a row.
        last_seen_s: monotonic seconds; None: never.
        up_since_s: when it was found up, monotonic seconds.
        in_flight: what we had there, by model id, when `health` was read.
    """

    name: str
    endpoint: str
    is_up: bool = False
    is_discovered: bool = False
    discovery: Discovery | None = None
    models: tuple[ModelState, ...] = ()
    health: Health | None = None
    misses: int = 0
    last_seen_s: float | None = None
    up_since_s: float = 0.0
    in_flight: dict[str, int] = {}

    @property
    def was_seen(self) -> bool:
        """Whether it ever answered."""
        return self.last_seen_s is not None

    def state(self, model_id: str) -> ModelState | None:
        """The model as it is there; None: it is not, or the node is down."""
        return next((s for s in self.models if s.id == model_id), None) if self.is_up else None

    def activity(self, model_id: str) -> ModelActivity:
        """What the model's engine is doing, by the neuron's last count."""
        told = self.health.models if self.health else []
        nothing = ModelActivity(id=model_id, status="unknown")
        return next((activity for activity in told if activity.id == model_id), nothing)


class Resident(msgspec.Struct, frozen=True):
    """A model on a node that is up."""

    node: NodeView
    state: ModelState


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one request. `at` is Unix seconds; `node` is None where it went nowhere."""

    at: float
    request_id: str
    model: str
    decision: str
    node: str | None = None
    reason: str = ""
    waited_s: float = 0.0


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a neuron said that a model would take there.

    Attributes:
        devices_mb: MiB by device; empty: it does not know, or was not to be asked.
        never: why it can never be loaded there as declared; None: it can, now or later.
    """

    devices_mb: Claims = {}
    never: str | None = None


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    """Requests for one model that wait for room: since when the first of them does, and which nodes could have it."""

    since_s: float
    nodes: frozenset[str] = frozenset()


class FleetView(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet at one moment. Times are monotonic seconds.

    Attributes:
        nodes: every configured node.
        in_flight: requests that we have at each place.
        turns: number of the last request that was sent to each place.
        loads: places where a load or wake that we asked for is under way, and what that claims.
        leaving: places whose model makes room, and the place that it makes room for; None: an operator wants it.
        pins: places that nobody is evicted from; the node may be EVERYWHERE.
        drained: nodes that get no new work.
        up_s: when a model came up, where we saw it; any other was up before us.
        used_s: when a request was last sent or ended there; absent: not since we look.
        held: requests that wait for a model to come up, by its name.
        queued: of those, who wait for room.
        needs: what neurons said that models would take there, by the id of the spec.
        measured_mb: what models had there, over all devices, when last up.
    """

    nodes: tuple[NodeView, ...]
    in_flight: Mapping[Place, int] = {}
    turns: Mapping[Place, int] = {}
    loads: Mapping[Place, Claims] = {}
    leaving: Mapping[Place, Place | None] = {}
    pins: frozenset[Place] = frozenset()
    drained: frozenset[str] = frozenset()
    up_s: Mapping[Place, float] = {}
    used_s: Mapping[Place, float] = {}
    held: Mapping[str, int] = {}
    queued: Mapping[str, Queued] = {}
    needs: Mapping[Place, Needs] = {}
    measured_mb: Mapping[Place, int] = {}

    def node(self, name: str) -> NodeView:
        """A configured node."""
        return next(node for node in self.nodes if node.name == name)

    def residents(self, *names: str) -> list[Resident]:
        """Where a model is, on nodes that are up, by any of its names.

        A bare name also finds `scheme:org/name`, unless that would be two different models.
        """
        there = [Resident(n, s) for n in self.nodes if n.is_up for s in n.models]
        exact = [resident for resident in there if resident.state.id in names]
        if exact:
            return exact
        bare = [r for r in there if read_model_name(r.state.id).bare in names]
        return bare if len({r.state.id for r in bare}) == 1 else []

    def knows(self, name: str) -> bool:
        """Whether any node has a model of that name, bare or not, or had it when last seen."""
        return any(
            name in (state.id, read_model_name(state.id).bare)
            for node in self.nodes
            for state in node.models
        )

    def lost(self, *names: str) -> list[str]:
        """Nodes that are down and had the model when last seen."""
        return [
            node.name
            for node in self.nodes
            if not node.is_up and any(state.id in names for state in node.models)
        ]

    def serves(self, resident: Resident) -> bool:
        """Whether new requests may go there: it is up, does not make room, and its node is not drained."""
        place = (resident.node.name, resident.state.id)
        return (
            is_ready(resident.state)
            and place not in self.leaving
            and resident.node.name not in self.drained
        )

    def is_pinned(self, node: str, *names: str) -> bool:
        """Whether an operator pinned the model there, at run time."""
        return any((at, name) in self.pins for at in (node, EVERYWHERE) for name in names)

    def replica(self, resident: Resident) -> Replica:
        """What a policy is told of it."""
        node, model_id = resident.node, resident.state.id
        told = node.activity(model_id)
        ours = self.in_flight.get((node.name, model_id), 0)
        return Replica(
            node=node.name,
            model_id=model_id,
            busy=max(ours, told.running + told.waiting + ours - node.in_flight.get(model_id, 0)),
            max_running=told.max_running,
            max_waiting=told.max_waiting,
            last_turn=self.turns.get((node.name, model_id), 0),
        )


class Fleet:
    """The owner of what is known of the fleet.

    Args:
        nodes: name and endpoint of each.
        misses: failed looks in a row after which a node is down.
    """

    def __init__(self, nodes: Iterable[tuple[str, str]], *, misses: int = 3) -> None:
        self._nodes = {name: NodeView(name=name, endpoint=endpoint) for name, endpoint in nodes}
        self._misses = misses
        self._in_flight: Counter[Place] = Counter()
        self._turns: dict[Place, int] = {}
        self._turn = 0
        self._loads: dict[Place, Claims] = {}
        self._leaving: dict[Place, Place | None] = {}
        self._pins: frozenset[Place] = frozenset()
        self._drained: frozenset[str] = frozenset()
        self._up_s: dict[Place, float] = {}
        self._used_s: dict[Place, float] = {}
        self._held: Counter[str] = Counter()
        self._queued: dict[str, dict[int, Queued]] = {}
        self._needs: dict[Place, Needs] = {}
        self._measured_mb: dict[Place, int] = {}
        self._decisions: deque[Decided] = deque(maxlen=KEPT_DECISIONS)

    def view(self) -> FleetView:
        """The fleet as it is now."""
        return FleetView(
            nodes=tuple(self._nodes.values()),
            in_flight=dict(self._in_flight),
            turns=dict(self._turns),
            loads=dict(self._loads),
            leaving=dict(self._leaving),
            pins=self._pins,
            drained=self._drained,
            up_s=dict(self._up_s),
            used_s=dict(self._used_s),
            held=dict(self._held),
            queued={model: _first(queued) for model, queued in self._queued.items()},
            needs=dict(self._needs),
            measured_mb=dict(self._measured_mb),
        )

    def node(self, name: str) -> NodeView:
        """One node as it is now."""
        return self._nodes[name]

    def in_flight(self, place: Place) -> int:
        """Requests that we have there now."""
        return self._in_flight[place]

    @property
    def decisions(self) -> list[Decided]:
        """The last ones, newest first."""
        return list(reversed(self._decisions))

    def apply_report(self, name: str, report: Report, now_s: float) -> bool:
        """The neuron answered. Returns whether the node was not up before."""
        before = self._nodes[name]
        self._nodes[name] = msgspec.structs.replace(
            before,
            is_up=True,
            is_discovered=report.discovery is not None
            or (before.is_discovered and not _restarted(before.health, report.health)),
            discovery=report.discovery or before.discovery,
            models=report.models,
            health=report.health or before.health,
            misses=0,
            last_seen_s=now_s,
            up_since_s=before.up_since_s if before.is_up else now_s,
            in_flight=self._in_flight_at(name) if report.health else before.in_flight,
        )
        self._note_residency(before, report, now_s)
        self._forget(name, {state.id for state in report.models})
        if report.discovery is not None:  # another start, maybe with other settings
            self._needs = {p: needs for p, needs in self._needs.items() if p[0] != name}
        return not before.is_up

    def _note_residency(self, before: NodeView, report: Report, now_s: float) -> None:
        """Who came up since the last look, and what who is up has."""
        was_up = {state.id for state in before.models if is_ready(state)}
        for state in report.models:
            place = (before.name, state.id)
            if not is_ready(state):
                self._up_s.pop(place, None)
            elif before.is_up and state.id not in was_up:
                self._up_s[place] = now_s
            if is_ready(state) and state.vram_used_mb:
                self._measured_mb[place] = state.vram_used_mb

    def apply_miss(self, name: str) -> bool:
        """The neuron did not answer. Returns whether the node is down from now on."""
        before = self._nodes[name]
        misses = before.misses + 1
        goes_down = before.is_up and misses >= self._misses
        self._nodes[name] = msgspec.structs.replace(
            before,
            misses=misses,
            is_up=before.is_up and not goes_down,
            # it may come back as another machine, or with other engines
            is_discovered=before.is_discovered and not goes_down,
        )
        return goes_down

    @contextmanager
    def serving(
        self, node: str, model_id: str, now_s: Callable[[], float] = lambda: 0.0
    ) -> Iterator[None]:
        """Count one request as in flight there. `now_s` is asked at its end."""
        place = (node, model_id)
        self._turn += 1
        self._turns[place] = self._turn
        self._in_flight[place] += 1
        try:
            yield
        finally:
            self._used_s[place] = now_s()
            self._in_flight[place] -= 1
            if not self._in_flight[place]:
                del self._in_flight[place]

    @contextmanager
    def holding(self, model: str) -> Iterator[None]:
        """Count one request as waiting for a model to come up."""
        self._held[model] += 1
        try:
            yield
        finally:
            self._held[model] -= 1
            if not self._held[model]:
                del self._held[model]

    @contextmanager
    def queueing(self, model: str, since_s: float, nodes: Iterable[str]) -> Iterator[None]:
        """Count one request as waiting for room, on one of the nodes."""
        self._turn += 1
        number = self._turn
        queued = self._queued.setdefault(model, {})
        queued[number] = Queued(since_s=since_s, nodes=frozenset(nodes))
        try:
            yield
        finally:
            del queued[number]
            if not queued:
                del self._queued[model]

    def note_load_begun(self, place: Place, claims_mb: Claims | None = None) -> None:
        """A load or wake that we ask for is under way there."""
        self._loads[place] = claims_mb or {}

    def note_load_ended(self, place: Place) -> None:
        """It is no longer, or we do not know of it any more: who made room for it need not go on."""
        self._loads.pop(place, None)
        self.note_leaving(place, ())

    def note_leaving(self, place: Place, leaving: Iterable[Place]) -> None:
        """Who makes room for a place from now on; nobody else does."""
        kept = {who: whom for who, whom in self._leaving.items() if whom != place}
        self._leaving = {**kept, **dict.fromkeys(leaving, place)}

    @contextmanager
    def moving(self, place: Place) -> Iterator[None]:
        """An operator has the model moved: nothing new is sent there meanwhile."""
        self._leaving[place] = None
        try:
            yield
        finally:
            self._leaving.pop(place, None)

    def note_needs(self, place: Place, needs: Needs) -> None:
        """A neuron said what a model would take there."""
        self._needs[place] = needs

    def forget_needs(self, place: Place) -> None:
        """What it said turned out not to be so."""
        self._needs.pop(place, None)

    def note_pin(self, place: Place, *, pinned: bool) -> None:
        """The model is not evicted there from now on, or may be again; the node may be EVERYWHERE."""
        self._pins = self._pins | {place} if pinned else self._pins - {place}

    def note_drain(self, node: str, *, drained: bool) -> None:
        """The node gets no new work from now on, or does again."""
        self._drained = self._drained | {node} if drained else self._drained - {node}

    def note_decision(self, decided: Decided) -> None:
        """Keep what became of a request."""
        self._decisions.append(decided)

    def _in_flight_at(self, name: str) -> dict[str, int]:
        return {model: count for (node, model), count in self._in_flight.items() if node == name}

    def _forget(self, name: str, resident: set[str]) -> None:
        """Drop what is kept of models that left, or it would grow with every model that ever was."""
        kept: tuple[dict[Place, Any], ...] = (self._turns, self._used_s, self._up_s)
        for each in kept:
            for place in [p for p in each if p[0] == name and p[1] not in resident]:
                if place not in self._in_flight:
                    del each[place]


def _restarted(before: Health | None, after: Health | None) -> bool:
    """Whether another process answers there now: systemd restarts one faster than misses are counted."""
    return before is not None and after is not None and after.uptime_secs < before.uptime_secs


def _first(queued: Mapping[int, Queued]) -> Queued:
    """What is known of a model's queue: its oldest request counts for all."""
    return min(queued.values(), key=lambda each: each.since_s)


def is_ready(state: ModelState) -> bool:
    """Whether requests may go there. A status word that we do not know is not ready."""
    return state.status == ModelStatus.LOADED
