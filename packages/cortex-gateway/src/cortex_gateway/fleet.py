# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the fleet now: nodes, their models, what is in flight.

`Fleet` is the one owner of that. It changes in synchronous methods alone, which are handed the time; everybody else
gets a frozen `FleetView`, which is stale after the next await. Pure.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from cortex_core.discovery import Discovery
from cortex_core.node import Health, ModelState
from cortex_core.weights import WeightsState
from cortex_gateway.places import move_places
from cortex_gateway.problems import Problem
from cortex_gateway.view import (
    Claims,
    FleetView,
    Index,
    Move,
    Needs,
    NodeView,
    Place,
    Queued,
    build_index,
    is_ready,
)

T = TypeVar("T")

# Enough to see what just happened; an operator who wants more has the log.
KEPT_DECISIONS = 100


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at a neuron found. `discovery` and `health` are None where they were not asked for, or failed."""

    models: tuple[ModelState, ...]
    discovery: Discovery | None = None
    health: Health | None = None


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one request. `at` is Unix seconds; `node` is None where it went nowhere."""

    at: float
    request_id: str
    model: str
    decision: str
    node: str | None = None
    reason: str = ""
    waited_s: float = 0.0


class Fleet:
    """The owner of what is known of the fleet.

    Args:
        nodes: name and endpoint of each.
        misses: failed looks in a row after which a node is down.
    """

    def __init__(self, nodes: Iterable[tuple[str, str]], *, misses: int = 3) -> None:
        # A view holds these as they are: they are replaced, never changed.
        self._nodes = tuple(NodeView(name=name, endpoint=endpoint) for name, endpoint in nodes)
        self._index = build_index(self._nodes)
        self._misses = misses
        self._in_flight: Counter[Place] = Counter()
        self._turns: dict[Place, int] = {}
        self._turn = 0
        self._loads: dict[Place, Claims] = {}
        self._leaving: dict[Place, Place | None] = {}
        self._pins: frozenset[Place] = frozenset()
        self._drained: frozenset[str] = frozenset()
        self._retired: frozenset[str] = frozenset()
        self._up_s: dict[Place, float] = {}
        self._used_s: dict[Place, float] = {}
        self._stayed_s: dict[Place, float] = {}
        self._held: Counter[str] = Counter()
        self._queued: dict[str, dict[int, Queued]] = {}
        self._needs: dict[Place, Needs] = {}
        self._measured_mb: dict[Place, int] = {}
        self._took_s: dict[Place, dict[Move, float]] = {}
        self._decisions: deque[Decided] = deque(maxlen=KEPT_DECISIONS)

    def view(self) -> FleetView:
        """The fleet as it is now."""
        return FleetView(
            nodes=self._nodes,
            in_flight=dict(self._in_flight),
            turns=dict(self._turns),
            loads=self._loads,
            leaving=self._leaving,
            pins=self._pins,
            drained=self._drained | self._retired,
            up_s=self._up_s,
            used_s=dict(self._used_s),
            stayed_s=self._stayed_s,
            held=dict(self._held),
            queued={model: _first(queued) for model, queued in self._queued.items()},
            needs=self._needs,
            measured_mb=self._measured_mb,
            took_s=self._took_s,
            index=self._index,
        )

    def node(self, name: str) -> NodeView:
        """One node as it is now."""
        return self._index.by_name[name]

    def takes_s(self, place: Place, move: Move) -> float | None:
        """How long that took there when it was last done; None: it never was, or not since we look."""
        return self._took_s.get(place, {}).get(move)

    def in_flight(self, place: Place) -> int:
        """Requests that we have there now."""
        return self._in_flight[place]

    @property
    def decisions(self) -> list[Decided]:
        """The last ones, newest first."""
        return list(reversed(self._decisions))

    def apply_report(self, name: str, report: Report, now_s: float) -> bool:
        """The neuron answered. Returns whether the node was not up before."""
        before = self._index.by_name[name]
        after = msgspec.structs.replace(
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
            problem=None,
        )
        self._replace(before, after)
        self._note_residency(before, report, now_s)
        self._forget(name, {state.id for state in report.models})
        if report.discovery is not None:  # another start, maybe with other settings
            self._needs = _less(self._needs, [place for place in self._needs if place[0] == name])
        return not before.is_up

    def _note_residency(self, before: NodeView, report: Report, now_s: float) -> None:
        """Who came up since the last look, what who is up has, and how long who is there took."""
        was_up = {state.id for state in before.models if is_ready(state)}
        for state in report.models:
            place = (before.name, state.id)
            if not is_ready(state):
                self._up_s = _less(self._up_s, [place])
            elif before.is_up and state.id not in was_up:
                self._up_s = {**self._up_s, place: now_s}
            used_mb = state.vram_used_mb
            if is_ready(state) and used_mb and used_mb != self._measured_mb.get(place):
                self._measured_mb = {**self._measured_mb, place: used_mb}
            took_s = _took_s(state)
            if took_s and took_s != self._took_s.get(place):
                self._took_s = {**self._took_s, place: took_s}

    def apply_miss(
        self, name: str, problem: Problem | None = None, *, at_once: bool = False
    ) -> bool:
        """The neuron did not answer. Returns whether the node is down from now on, `at_once` or after some misses."""
        before = self._index.by_name[name]
        misses = before.misses + 1
        goes_down = before.is_up and (at_once or misses >= self._misses)
        after = msgspec.structs.replace(
            before,
            misses=misses,
            is_up=before.is_up and not goes_down,
            # it may come back as another machine, or with other engines
            is_discovered=before.is_discovered and not goes_down,
            problem=problem,
        )
        self._replace(before, after)
        return goes_down

    def note_weights(self, name: str, weights: Iterable[WeightsState]) -> None:
        """The neuron said which models' files it has."""
        before = self._index.by_name[name]
        self._replace(before, msgspec.structs.replace(before, weights=tuple(weights)))

    def add_node(self, name: str, endpoint: str) -> None:
        """There is a node from now on, of which nothing is known; or it listens elsewhere."""
        before = self._index.by_name.get(name, NodeView(name=name, endpoint=endpoint))
        self._replace(before, NodeView(name=name, endpoint=endpoint))
        self._retired -= {name}
        self._forget_machine(name)

    def retire_node(self, name: str) -> None:
        """The node gets nothing new, for good; what runs there goes on."""
        self._retired |= {name}

    def keep_node(self, name: str) -> None:
        """A node that was retired is none of those any more."""
        self._retired -= {name}

    def is_retired(self, name: str) -> bool:
        """Whether the node gets nothing new, for good."""
        return name in self._retired

    def is_idle(self, name: str) -> bool:
        """Whether we have nothing at a node: no request, no load, nothing that makes room."""
        places = (*self._in_flight, *self._loads, *self._leaving)
        return not any(place[0] == name for place in places)

    def remove_node(self, name: str) -> None:
        """There is no such node any more."""
        before = self._index.by_name[name]
        self._replace(before, NodeView(name=name, endpoint=before.endpoint))
        by_name = {each: node for each, node in self._index.by_name.items() if each != name}
        self._index = Index(by_name=by_name, places=self._index.places)
        self._nodes = tuple(by_name.values())
        self._retired -= {name}
        self._drained -= {name}
        self._forget_machine(name)

    def _forget_machine(self, name: str) -> None:
        """Another one may come by that name."""
        self._needs = _less(self._needs, [place for place in self._needs if place[0] == name])
        gone = [place for place in self._measured_mb if place[0] == name]
        self._measured_mb = _less(self._measured_mb, gone)
        self._took_s = _less(self._took_s, [place for place in self._took_s if place[0] == name])
        self._forget(name, set())

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
        self._loads = {**self._loads, place: claims_mb or {}}

    def note_load_ended(self, place: Place) -> None:
        """It is no longer, or we do not know of it any more: who made room for it need not go on."""
        self._loads = _less(self._loads, [place])
        self.note_leaving(place, ())

    def note_leaving(self, place: Place, leaving: Iterable[Place]) -> None:
        """Who makes room for a place from now on; nobody else does."""
        kept = {who: whom for who, whom in self._leaving.items() if whom != place}
        self._leaving = {**kept, **dict.fromkeys(leaving, place)}

    def note_stayed(self, place: Place, now_s: float) -> None:
        """Its work did not end in time for it to make room."""
        self._stayed_s = {**self._stayed_s, place: now_s}

    @contextmanager
    def moving(self, place: Place) -> Iterator[None]:
        """An operator has the model moved: nothing new is sent there meanwhile."""
        self._leaving = {**self._leaving, place: None}
        try:
            yield
        finally:
            self._leaving = _less(self._leaving, [place])

    def note_needs(self, place: Place, needs: Needs) -> None:
        """A neuron said what a model would take there."""
        self._needs = {**self._needs, place: needs}

    def forget_all_needs(self) -> None:
        """What was asked for may be another by now."""
        self._needs = {}

    def forget_needs(self, place: Place) -> None:
        """What it said turned out not to be so."""
        self._needs = _less(self._needs, [place])

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

        def is_gone(place: Place) -> bool:
            return place[0] == name and place[1] not in resident and place not in self._in_flight

        kept: tuple[dict[Place, Any], ...] = (self._turns, self._used_s)
        for each in kept:
            for place in [place for place in each if is_gone(place)]:
                del each[place]
        self._up_s = _less(self._up_s, [place for place in self._up_s if is_gone(place)])
        self._stayed_s = _less(self._stayed_s, [at for at in self._stayed_s if is_gone(at)])

    def _replace(self, before: NodeView, after: NodeView) -> None:
        """The node is seen otherwise from now on."""
        by_name = {**self._index.by_name, after.name: after}
        places = self._index.places
        if after.by_id.keys() != before.by_id.keys():
            places = move_places(places, after.name, before.by_id, after.by_id)
        self._index = Index(by_name=by_name, places=places)
        self._nodes = tuple(by_name.values())


def _took_s(state: ModelState) -> dict[Move, float]:
    """What its neuron measured."""
    told: dict[Move, float | None] = {
        "load": state.load_s,
        "wake": state.wake_s,
        "sleep": state.sleep_s,
        "unload": state.unload_s,
    }
    return {move: seconds for move, seconds in told.items() if seconds is not None}


def _restarted(before: Health | None, after: Health | None) -> bool:
    """Whether another process answers there now: systemd restarts one faster than misses are counted."""
    if before is None or after is None:
        return False
    return after.uptime_secs < before.uptime_secs or after.instance != before.instance


def _less(kept: dict[Place, T], gone: Collection[Place]) -> dict[Place, T]:
    """Without some: the same map where none of them is in it."""
    if not any(place in kept for place in gone):
        return kept
    return {place: each for place, each in kept.items() if place not in gone}


def _first(queued: Mapping[int, Queued]) -> Queued:
    """What is known of a model's queue: its oldest request counts for all."""
    return min(queued.values(), key=lambda each: each.since_s)
