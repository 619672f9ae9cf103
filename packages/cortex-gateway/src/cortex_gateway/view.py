# SPDX-License-Identifier: GPL-3.0-or-later
"""What does everybody but its owner see of the fleet? Frozen values, stale after the next await. Pure."""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from operator import is_
from typing import Any, Literal, TypeVar

import msgspec

from cortex_core.discovery import Discovery
from cortex_core.node import Health, ModelActivity, ModelState, ModelStatus
from cortex_core.weights import WeightsState
from cortex_gateway.places import Places, find_places
from cortex_gateway.problems import Problem
from cortex_gateway.routing.policy import Replica

Place = tuple[str, str]  # a node's name, and the id of a model on it
Claims = Mapping[int, int]  # MiB by index of the device
Move = Literal["load", "wake", "sleep", "unload"]
EVERYWHERE = "*"  # as a pin's node
T = TypeVar("T")


class NodeView(msgspec.Struct, frozen=True, kw_only=True, dict=True):
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
        problem: what was the matter at the last look; None: nothing.
        weights: the models whose files it has; None: it has not told.
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
    problem: Problem | None = None
    weights: tuple[WeightsState, ...] | None = None

    @property
    def was_seen(self) -> bool:
        """Whether it ever answered, by this name or another."""
        return self.last_seen_s is not None or self.is_twin

    @property
    def is_twin(self) -> bool:
        """Whether another node is the same neuron, so that this one has nothing of its own."""
        return self.problem is not None and self.problem.kind == "twin"

    @property
    def matter(self) -> str:
        """In words, why it is not up."""
        if self.problem and self.problem.is_told:
            return self.problem.text
        return "does not answer" if self.was_seen else "never answered"

    def state(self, model_id: str) -> ModelState | None:
        """The model as it is there; None: it is not, or the node is down."""
        return self.by_id.get(model_id) if self.is_up else None

    def find(self, names: Iterable[str]) -> ModelState | None:
        """The model as it is there, or was when last seen, by any of its names; None: it is not."""
        by_id = self.by_id
        return next((by_id[name] for name in names if name in by_id), None)

    @cached_property
    def coming(self) -> tuple[str, ...]:
        """What it brings up of itself, since its own configuration says so, and has not yet; empty: nothing, or it is down."""
        if self.health is None or not self.is_up:
            return ()
        return (*self.health.activation.in_progress, *self.health.activation.pending)

    def activity(self, model_id: str) -> ModelActivity:
        """What the model's engine is doing, by the neuron's last count."""
        return self._activities.get(model_id) or ModelActivity(id=model_id, status="unknown")

    @cached_property
    def by_id(self) -> dict[str, ModelState]:
        """Its models."""
        return {state.id: state for state in self.models}

    @cached_property
    def _activities(self) -> dict[str, ModelActivity]:
        return {told.id: told for told in (self.health.models if self.health else [])}

    def keep(self, what: str, basis: tuple[object, ...], work: Callable[[], T]) -> T:
        """What `work` makes of the node and of `basis`: worked out once, for as long as both are the same."""
        kept = self._kept.get(what)
        if kept is None or not all(map(is_, kept[0], basis)):
            kept = self._kept[what] = (basis, work())
        found: T = kept[1]
        return found

    @cached_property
    def _kept(self) -> dict[str, tuple[tuple[object, ...], Any]]:
        return {}


class Resident(msgspec.Struct, frozen=True):
    """A model on a node that is up."""

    node: NodeView
    state: ModelState


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


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """Where to find a node by its name, and the nodes that have, or had when last seen, a model."""

    by_name: Mapping[str, NodeView]
    places: Places


class FleetView(msgspec.Struct, frozen=True, kw_only=True, dict=True):
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
        stayed_s: when a model last was to make room, and its work did not end in time.
        held: requests that wait for a model to come up, by its name.
        queued: of those, who wait for room.
        needs: what neurons said that models would take there, by the id of the spec.
        measured_mb: what models had there, over all devices, when last up.
        took_s: how long each move of a model took when it was last done there, as its neuron measured it.
        index: of `nodes`; None: it is made when it is needed.
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
    stayed_s: Mapping[Place, float] = {}
    held: Mapping[str, int] = {}
    queued: Mapping[str, Queued] = {}
    needs: Mapping[Place, Needs] = {}
    measured_mb: Mapping[Place, int] = {}
    took_s: Mapping[Place, Mapping[Move, float]] = {}
    index: Index | None = None

    def node(self, name: str) -> NodeView:
        """A configured node."""
        return self._index.by_name[name]

    def only(self, *names: str) -> "FleetView":
        """The same, as if there were no other nodes."""
        nodes = tuple(self.node(name) for name in names)
        return msgspec.structs.replace(self, nodes=nodes, index=None)

    def residents(self, *names: str) -> list[Resident]:
        """Where a model is, on nodes that are up, by any of its names.

        A bare name also finds `scheme:org/name`, unless that would be two different models.
        """
        there = self._up(names)
        exact = [resident for resident in there if resident.state.id in names]
        if exact:
            return exact
        return there if len({resident.state.id for resident in there}) == 1 else []

    def knows(self, name: str) -> bool:
        """Whether any node has a model of that name, bare or not, or had it when last seen."""
        return name in self._index.places

    def coming(self, *names: str) -> Place | None:
        """Where a node that is in use brings the model up of itself, and by which of its names; None: nowhere."""
        places = (
            (node.name, name)
            for node in self.nodes
            if node.coming and node.name not in self.drained
            for name in names
            if name in node.coming
        )
        return next(places, None)

    def lost(self, *names: str) -> list[str]:
        """Nodes that are down and had the model when last seen."""
        places = {place for name in names for place in self._index.places.get(name, ())}
        return sorted(
            at for at, model_id in places if model_id in names and not self.node(at).is_up
        )

    def _up(self, names: tuple[str, ...]) -> list[Resident]:
        """What has one of these names, bare or not, on nodes that are up."""
        index = self._index
        found = []
        for at, model_id in dict.fromkeys(p for name in names for p in index.places.get(name, ())):
            node = index.by_name[at]
            if state := node.state(model_id):
                found.append(Resident(node, state))
        return found

    @cached_property
    def _index(self) -> Index:
        return self.index or build_index(self.nodes)

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
        if not self.pins:
            return False
        return any((at, name) in self.pins for at in (node, EVERYWHERE) for name in names)

    def takes_s(self, node: str, move: Move, *names: str) -> float | None:
        """How long a move of the model took there when it was last done; None: it never was, or not since we look."""
        for name in names:
            took_s = self.took_s.get((node, name))
            if took_s is not None and move in took_s:
                return took_s[move]
        return None

    def busy(self, node: NodeView, model_id: str) -> int:
        """Requests that a model has: by the neuron's last count, and what we sent and saw end since."""
        told = node.activity(model_id)
        ours = self.in_flight.get((node.name, model_id), 0)
        if not ours and not told.running and not told.waiting:
            return 0
        return max(ours, told.running + told.waiting + ours - node.in_flight.get(model_id, 0))

    def replica(self, resident: Resident) -> Replica:
        """What a policy is told of it."""
        node, model_id = resident.node, resident.state.id
        told = node.activity(model_id)
        return Replica(
            node=node.name,
            model_id=model_id,
            busy=self.busy(node, model_id),
            max_running=told.max_running,
            max_waiting=told.max_waiting,
            last_turn=self.turns.get((node.name, model_id), 0),
        )


def build_index(nodes: Iterable[NodeView]) -> Index:
    """The index of these nodes."""
    by_name = {node.name: node for node in nodes}
    return Index(
        by_name=by_name,
        places=find_places((name, node.by_id) for name, node in by_name.items()),
    )


def is_ready(state: ModelState) -> bool:
    """Whether requests may go there. A status word that we do not know is not ready."""
    return state.status == ModelStatus.LOADED
