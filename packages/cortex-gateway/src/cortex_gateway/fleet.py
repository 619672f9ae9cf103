# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the fleet now: nodes, their models, what is in flight.

`Fleet` is the one owner of that. It changes in synchronous methods alone, which are handed the time; everybody else
gets a frozen `FleetView`, which is stale after the next await. Pure.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from cortex_core.discovery import Discovery
from cortex_core.node import Health, ModelActivity, ModelState, ModelStatus
from cortex_core.sources import read_model_name
from cortex_gateway.routing.policy import Replica

# Enough to see what just happened; an operator who wants more has the log.
KEPT_DECISIONS = 100

Place = tuple[str, str]  # a node's name, and the id of a model on it


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


class FleetView(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet at one moment.

    Attributes:
        nodes: every configured node.
        in_flight: requests that we have at each place.
        turns: number of the last request that was sent to each place.
        loads: places where a load that we asked for is under way.
    """

    nodes: tuple[NodeView, ...]
    in_flight: Mapping[Place, int] = {}
    turns: Mapping[Place, int] = {}
    loads: frozenset[Place] = frozenset()

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

    def lost(self, *names: str) -> list[str]:
        """Nodes that are down and had the model when last seen."""
        return [
            node.name
            for node in self.nodes
            if not node.is_up and any(state.id in names for state in node.models)
        ]

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
        self._loads: set[Place] = set()
        self._decisions: deque[Decided] = deque(maxlen=KEPT_DECISIONS)

    def view(self) -> FleetView:
        """The fleet as it is now."""
        return FleetView(
            nodes=tuple(self._nodes.values()),
            in_flight=dict(self._in_flight),
            turns=dict(self._turns),
            loads=frozenset(self._loads),
        )

    def node(self, name: str) -> NodeView:
        """One node as it is now."""
        return self._nodes[name]

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
            in_flight=self._in_flight_at(name) if report.health else before.in_flight,
        )
        self._forget_turns(name, {state.id for state in report.models})
        return not before.is_up

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
    def serving(self, node: str, model_id: str) -> Iterator[None]:
        """Count one request as in flight there."""
        place = (node, model_id)
        self._turn += 1
        self._turns[place] = self._turn
        self._in_flight[place] += 1
        try:
            yield
        finally:
            self._in_flight[place] -= 1
            if not self._in_flight[place]:
                del self._in_flight[place]

    def note_load_begun(self, place: Place) -> None:
        """A load that we ask for is under way there."""
        self._loads.add(place)

    def note_load_ended(self, place: Place) -> None:
        """It is no longer, or we do not know of it any more."""
        self._loads.discard(place)

    def note_decision(self, decided: Decided) -> None:
        """Keep what became of a request."""
        self._decisions.append(decided)

    def _in_flight_at(self, name: str) -> dict[str, int]:
        return {model: count for (node, model), count in self._in_flight.items() if node == name}

    def _forget_turns(self, name: str, resident: set[str]) -> None:
        """Drop what is kept of models that left, or it would grow with every model that ever was."""
        for place in [p for p in self._turns if p[0] == name and p[1] not in resident]:
            if place not in self._in_flight:
                del self._turns[place]


def _restarted(before: Health | None, after: Health | None) -> bool:
    """Whether another process answers there now: systemd restarts one faster than misses are counted."""
    return before is not None and after is not None and after.uptime_secs < before.uptime_secs


def is_ready(state: ModelState) -> bool:
    """Whether requests may go there. A status word that we do not know is not ready."""
    return state.status == ModelStatus.LOADED
