# SPDX-License-Identifier: GPL-3.0-or-later
"""Where could a model that is not up run, and where does it best? Pure."""

import msgspec

from cortex_core.catalogue import DEFAULT_PRIORITY, Catalogue, Model, infeasible_reason
from cortex_core.discovery import Discovery
from cortex_core.node import ModelState, ModelStatus
from cortex_gateway.config import EvictionSettings
from cortex_gateway.declared import find_entry, name_of, names_of
from cortex_gateway.eviction import (
    Blocked,
    Claimant,
    Room,
    find_free,
    find_room,
    gone_s,
    make_room,
)
from cortex_gateway.memory import NOTHING, need_of, need_to_wake
from cortex_gateway.view import FleetView, NodeView

# It serves there, or is about to: it is not brought up a second time.
_THERE = (ModelStatus.LOADED, ModelStatus.LOADING, ModelStatus.UNLOADING, ModelStatus.RECOVERING)
_UNKNOWN = Discovery(hostname="", os="", kernel="")


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """Every node, sorted by what it can do for one model.

    Attributes:
        feasible: up, and it can run there.
        absent: down, drained, or not yet known, and it could or may run there: node to what is the matter.
        infeasible: it can never run there: node to the arithmetic.
    """

    feasible: tuple[NodeView, ...]
    absent: dict[str, str]
    infeasible: dict[str, str]

    @property
    def why_nowhere(self) -> str | None:
        """What is the matter with every node, with the arithmetic, where none can run it now; None: one can."""
        if self.feasible:
            return None
        reasons = {**self.infeasible, **self.absent}
        return "; ".join(f"{node}: {reason}" for node, reason in reasons.items()) or None


def survey(view: FleetView, model: Model) -> Survey:
    """Ask every node whether the model can run there at all. Total memory only."""
    feasible: list[NodeView] = []
    absent: dict[str, str] = {}
    infeasible: dict[str, str] = {}
    for node in view.nodes:
        if reason := _never(view, node, model):
            infeasible[node.name] = reason
        elif missing := _missing(view, node):
            absent[node.name] = missing
        else:
            feasible.append(node)
    return Survey(feasible=tuple(feasible), absent=absent, infeasible=infeasible)


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """A node on which a model could come up.

    Attributes:
        asleep: the model as it sleeps there; None: it would be loaded.
        found: whether there is room for it.
    """

    node: NodeView
    asleep: ModelState | None
    found: Room | Blocked

    @property
    def is_free(self) -> bool:
        """Whether nobody has to go."""
        return isinstance(self.found, Room) and not self.found.displaces


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model that is not up could come up.

    Attributes:
        best: None: nowhere now.
        blocked: nodes that have no room for it now; empty where the best is free, since nobody asks then.
    """

    best: Option | None
    blocked: dict[str, Blocked]


def find_options(
    view: FleetView,
    catalogue: Catalogue,
    model_id: str,
    rules: EvictionSettings,
    now_s: float,
    shunned: frozenset[str] = frozenset(),
) -> Options:
    """Look at each node on which a model sleeps, or could be loaded, and is not on its way already.

    The best is, in this order:

    1. One where nobody has to go, and it sleeps; then one where nobody has to go.
    2. One where it sleeps, and others make room; then one where others make room.
    3. One where its last engine did not fail.
    4. One that an operator pinned it to.
    5. The one where least is lost by making room.
    6. The one where it is up soonest, by what was measured there: who makes room is moved, then it is woken or loaded.
       Where it never was, that is taken to last as long as on the others.
    7. The one with the fewest models, then by name.

    A node is nobody's turn but the oldest's: who waits longer and could come up there goes first.
    """
    entry = find_entry(catalogue, model_id)
    names = names_of(entry, model_id)
    queued = view.queued.get(names[0])
    since_s = queued.since_s if queued else now_s
    places = [
        (node, asleep, _claimant(view, catalogue, node, entry, names, since_s))
        for node, asleep in _places(view, entry, names)
        if node.name not in shunned
    ]
    free = [
        Option(node=node, asleep=asleep, found=room)
        for node, asleep, claimant in places
        if (room := find_free(view, catalogue, node, claimant))
    ]
    if free:
        return Options(best=_best(view, names, free), blocked={})
    options = [
        Option(node=at, asleep=asleep, found=make_room(view, catalogue, at, claimant, rules, now_s))
        for at, asleep, claimant in places
    ]
    if view.queued:
        options = [_yielding(view, catalogue, names[0], each, rules, now_s) for each in options]
    fitting = [option for option in options if isinstance(option.found, Room)]
    return Options(
        best=_best(view, names, fitting),
        blocked={o.node.name: o.found for o in options if isinstance(o.found, Blocked)}
        | _leaving(view, names),
    )


def room_at(
    view: FleetView,
    catalogue: Catalogue,
    node: NodeView,
    model_id: str,
    rules: EvictionSettings,
    now_s: float,
) -> Room | Blocked:
    """Whether a model can come up on this node, and who makes room for it; it sleeps there, or is declared."""
    entry = find_entry(catalogue, model_id)
    names = names_of(entry, model_id)
    queued = view.queued.get(names[0])
    since_s = queued.since_s if queued else now_s
    claimant = _claimant(view, catalogue, node, entry, names, since_s)
    return find_room(view, catalogue, node, claimant, rules, now_s)


def _claimant(
    view: FleetView,
    catalogue: Catalogue,
    node: NodeView,
    entry: Model | None,
    names: tuple[str, ...],
    since_s: float,
) -> Claimant:
    state = node.find(names)
    if state is not None and state.status == ModelStatus.SLEEPING:
        need = need_to_wake(view, catalogue, node, state)
    else:
        need = need_of(view, node, entry) if entry else NOTHING
    return Claimant(
        place=(node.name, state.id if state else names[-1]),
        need=need,
        rank=entry.priority if entry else DEFAULT_PRIORITY,
        since_s=since_s,
    )


def _places(
    view: FleetView, entry: Model | None, names: tuple[str, ...]
) -> list[tuple[NodeView, ModelState | None]]:
    """Nodes where it sleeps, and those where it is not at all and could be."""
    found: list[tuple[NodeView, ModelState | None]] = []
    for node in view.nodes:
        if not node.is_up or node.name in view.drained:
            continue
        state = node.find(names)
        if state is not None and (node.name, state.id) in view.leaving:
            continue
        if state is not None and state.status == ModelStatus.SLEEPING:
            found.append((node, state))
        elif (state is None or state.status not in _THERE) and _is_feasible(view, node, entry):
            found.append((node, None))
    return found


def _is_feasible(view: FleetView, node: NodeView, entry: Model | None) -> bool:
    return entry is not None and not _missing(view, node) and not _never(view, node, entry)


def _leaving(view: FleetView, names: tuple[str, ...]) -> dict[str, Blocked]:
    """Nodes that it is about to leave: for another, or because an operator wants it."""
    whom = {at[0]: for_ for at, for_ in view.leaving.items() if at[1] in names}
    return {
        node: Blocked(
            by="held",
            reason=f"it makes room for {place[1]}" if place else "an operator has it moved",
        )
        for node, place in whom.items()
    }


def _yielding(
    view: FleetView,
    catalogue: Catalogue,
    name: str,
    option: Option,
    rules: EvictionSettings,
    now_s: float,
) -> Option:
    """The same, but blocked where others would have to go, and somebody who waits longer could come up there."""
    if option.is_free or isinstance(option.found, Blocked):
        return option
    own = view.queued.get(name)
    for model, queued in view.queued.items():
        is_before = own is None or (queued.since_s, model) < (own.since_s, name)
        if model == name or not is_before or option.node.name not in queued.nodes:
            continue
        if any(name_of(catalogue, place[1]) == model for place in view.loads):  # it has its turn
            continue
        if isinstance(room_at(view, catalogue, option.node, model, rules, now_s), Room):
            blocked = Blocked(by="held", reason=f"{model} waits longer for that room")
            return msgspec.structs.replace(option, found=blocked)
    return option


def _best(view: FleetView, names: tuple[str, ...], options: list[Option]) -> Option | None:
    usual_s = {
        is_asleep: _mean([o for o in options if (o.asleep is not None) is is_asleep], view, names)
        for is_asleep in ((True, False) if view.took_s else ())
    }
    return min(options, key=lambda each: _rank(view, names, each, usual_s), default=None)


def _mean(options: list[Option], view: FleetView, names: tuple[str, ...]) -> float:
    known = [each for option in options if (each := _rise_s(view, names, option)) is not None]
    return sum(known) / len(known) if known else 0.0


def _rise_s(view: FleetView, names: tuple[str, ...], option: Option) -> float | None:
    """Seconds that its load or wake took there; None: never measured."""
    return view.takes_s(option.node.name, "wake" if option.asleep else "load", *names)


def expected_s(
    view: FleetView, catalogue: Catalogue, node: str, model_id: str, room: Room, *, is_asleep: bool
) -> float | None:
    """Seconds until a model is up on a node, by what was measured there, with those gone who make room.

    None: it was never brought up there, or not since we look.
    """
    names = names_of(find_entry(catalogue, model_id), model_id)
    rise_s = view.takes_s(node, "wake" if is_asleep else "load", *names)
    return None if rise_s is None else rise_s + gone_s(view, room)


def _rank(
    view: FleetView, names: tuple[str, ...], option: Option, usual_s: dict[bool, float]
) -> tuple[object, ...]:
    node, found = option.node, option.found
    coming = sum(1 for name, _ in view.loads if name == node.name)
    return (
        not option.is_free,  # 1
        option.asleep is None,  # 1, 2
        _failed_as(node, names),  # 3
        not view.is_pinned(node.name, *names),  # 4
        found.loss if isinstance(found, Room) else (),  # 5
        round(_up_s(view, names, option, usual_s)) if usual_s else 0,  # 6
        len(node.models) + coming,  # 7
        node.name,
    )


def _up_s(
    view: FleetView, names: tuple[str, ...], option: Option, usual_s: dict[bool, float]
) -> float:
    rise_s = _rise_s(view, names, option)
    if rise_s is None:
        rise_s = usual_s[option.asleep is not None]
    return rise_s + (gone_s(view, option.found) if isinstance(option.found, Room) else 0.0)


def _never(view: FleetView, node: NodeView, model: Model) -> str | None:
    if node.is_twin:
        return node.matter
    if node.discovery is None:  # only its name is known, and a pin speaks of names
        elsewhere = model.pinned_on and node.name not in model.pinned_on
        return infeasible_reason(model, node.name, _UNKNOWN) if elsewhere else None
    needs = view.needs.get((node.name, model.loaded_id))
    return infeasible_reason(model, node.name, node.discovery) or (needs.never if needs else None)


def _missing(view: FleetView, node: NodeView) -> str | None:
    if not node.is_up:
        return node.matter
    if node.name in view.drained:
        return "is drained"
    return None if node.discovery else "has not told what it is"


def failed_there(node: NodeView, model: Model) -> bool:
    """Whether its last engine there failed."""
    return _failed_as(node, names_of(model, model.id))


def _failed_as(node: NodeView, names: tuple[str, ...]) -> bool:
    state = node.find(names)
    return state is not None and state.status == ModelStatus.FAILED
