# SPDX-License-Identifier: GPL-3.0-or-later
"""Who makes room for a model on a node, and may that be now? Nobody is sent away here. Pure.

To add a strategy: a function that gives the order, one line in STRATEGIES.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from cortex_core.catalogue import DEFAULT_PRIORITY, Catalogue, Model
from cortex_core.node import ModelState, ModelStatus
from cortex_gateway.config import EvictionSettings
from cortex_gateway.declared import find_entry, names_of
from cortex_gateway.memory import Need, free_mb, held_by_all
from cortex_gateway.openai_models import has_lifecycle
from cortex_gateway.residency import is_urgent, stays_s
from cortex_gateway.view import Claims, FleetView, NodeView, Place, is_ready


class Claimant(msgspec.Struct, frozen=True, kw_only=True):
    """Who wants room.

    Attributes:
        place: where, and the id that it will be resident under.
        need: what it needs there.
        rank: its priority.
        since_s: when the oldest of its requests began to wait, monotonic seconds.
    """

    place: Place
    need: Need
    rank: int = DEFAULT_PRIORITY
    since_s: float


class Displace(msgspec.Struct, frozen=True, kw_only=True):
    """A model that makes room, and how: `sleep`, or `unload`."""

    node: str
    model: str
    model_id: str
    how: Literal["sleep", "unload"]

    @property
    def place(self) -> Place:
        """Where it is."""
        return self.node, self.model_id


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """There is room, or will be without some.

    Attributes:
        claims_mb: what is taken of each device; empty: it is not known how much it needs.
        displaces: who makes room; empty: it is free.
        loss: how much is lost by that; of two rooms, the one with less is better.
    """

    claims_mb: Claims = {}
    displaces: tuple[Displace, ...] = ()
    loss: tuple[float, ...] = ()


class Blocked(msgspec.Struct, frozen=True, kw_only=True):
    """There is no room now.

    Attributes:
        by: `held`: who has it works, has just come up, or is on its way, so it may be had later. `outranked`: only models
            of a higher priority could make it. `foreign`: what has it is none of the fleet's models. `pinned`: all
            that could make it is pinned.
        reason: the arithmetic.
    """

    by: Literal["held", "outranked", "foreign", "pinned"]
    reason: str


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A model that has a part of a node's devices.

    Attributes:
        displace: how it would make room.
        held_mb: what would be free without it, by device.
        rank: its priority.
        used_s: when it was last used; 0: not since we look.
        is_busy: requests are there.
        is_awaited: it has come up for requests that will be there in an instant.
        is_young: it has not been up for as long as it stays.
        is_spared: it was to make room, its work did not end in time, and it has served again for less than that.
        is_pinned: it is never displaced.
        is_moving: it comes, goes, or makes room for another.
        is_given: it makes room for this claimant already.
    """

    displace: Displace
    held_mb: Claims
    rank: int
    used_s: float
    is_busy: bool = False
    is_awaited: bool = False
    is_young: bool = False
    is_spared: bool = False
    is_pinned: bool = False
    is_moving: bool = False
    is_given: bool = False


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """What of a Holder does not change between two looks at its node.

    Attributes:
        place: where it is, as `displace` says too.
        names: every id that it may be resident under; the first is what it is called.
        state: as its neuron told.
        is_pinned: by its entry, or since it has none.
        is_settled: it neither comes nor goes.
        is_ready, is_asleep: by its status.
    """

    place: Place
    names: tuple[str, ...]
    state: ModelState
    displace: Displace
    rank: int
    is_pinned: bool
    is_settled: bool
    is_ready: bool
    is_asleep: bool


Order = Callable[[Holder], tuple[float, ...]]


def _lru(holder: Holder) -> tuple[float, ...]:
    return (holder.used_s,)


def _priority(holder: Holder) -> tuple[float, ...]:
    return (holder.rank, holder.used_s)


# Whose turn it is to go first, among those that may.
STRATEGIES: dict[str, Order] = {"lru": _lru, "priority": _priority}


def find_room(
    view: FleetView,
    catalogue: Catalogue,
    node: NodeView,
    claimant: Claimant,
    rules: EvictionSettings,
    now_s: float,
) -> Room | Blocked:
    """Say whether a model has room on a node, and who would make it.

    1. There is room, or nobody knows how much it needs: nobody goes.
    2. Those make room that may go now: as few as can be, those that the strategy names first. Who works or is young
       goes only if others are not enough, and only for who waits long enough; see `_may_go`. Of rooms for which as much
       is lost, the one that is made sooner.
    3. All that could make it is pinned: blocked, for good.
    4. Higher priorities have it, or something that is no model of the fleet; or who could go may not yet: blocked.

    The answer is stale after the next await.
    """
    free = find_free(view, catalogue, node, claimant)  # 1
    return free or make_room(view, catalogue, node, claimant, rules, now_s)


def make_room(
    view: FleetView,
    catalogue: Catalogue,
    node: NodeView,
    claimant: Claimant,
    rules: EvictionSettings,
    now_s: float,
) -> Room | Blocked:
    """Say who makes room on a node that has none: steps 2 to 4 of `find_room`."""
    need = claimant.need
    free = free_mb(view, catalogue, node, without=claimant.place)
    holders = holders_of(view, catalogue, node, claimant.place, rules, now_s)
    going = _in_order([h for h in holders if _may_go(h, claimant, rules, now_s)], rules)
    rooms = [_without(free, going, each, need, rules) for each in _candidates(free, going, need)]
    if fitting := [room for room in rooms if room is not None]:  # 2
        return min(fitting, key=lambda room: (room.loss, gone_s(view, room)))
    is_moving = any(at[0] == node.name and at != claimant.place for at in view.loads)
    return _blocked(node, free, holders, claimant, rules, is_moving=is_moving)  # 3, 4


def gone_s(view: FleetView, room: Room) -> float:
    """Seconds until those are gone who make the room, by what was measured; what never was counts nothing."""
    if not view.took_s:
        return 0.0
    took_s = [view.takes_s(who.node, who.how, who.model_id) for who in room.displaces]
    return sum([seconds or 0.0 for seconds in took_s])


def find_free(
    view: FleetView, catalogue: Catalogue, node: NodeView, claimant: Claimant
) -> Room | None:
    """Room on a node that nobody has to make; None: there is none."""
    need = claimant.need
    if need.share_mb is None:
        return Room()
    chosen = need.choose(free_mb(view, catalogue, node, without=claimant.place))
    return Room(claims_mb=need.claims_mb(chosen)) if chosen else None


def find_idle(
    view: FleetView, catalogue: Catalogue, rules: EvictionSettings, now_s: float
) -> list[Displace]:
    """Who has not been asked for in `idle_ttl_s`, though nobody wants the room: to go one rung down.

    A sleeper goes after twice as long. What was up before us was last used when we first saw it. A drained node is let be.
    """
    found = []
    for node in view.nodes if rules.idle_ttl_s else ():
        for tenant in _tenants(catalogue, node) if _is_ours(view, node) else []:
            state = tenant.state
            holder = _holder(view, node, tenant, {}, tenant.place, rules, now_s)
            stays_s = rules.idle_ttl_s * (2 if state.status == ModelStatus.SLEEPING else 1)
            is_kept = holder.is_pinned or holder.is_moving or holder.is_busy or holder.is_awaited
            is_kept = is_kept or not has_lifecycle(state)
            if not is_kept and now_s - max(holder.used_s, node.up_since_s) >= stays_s:
                found.append(holder.displace)
    return found


def _is_ours(view: FleetView, node: NodeView) -> bool:
    """Whether anything is decided about its models: it is up, and nobody has taken it out of use."""
    return node.is_up and node.name not in view.drained


def holders_of(
    view: FleetView,
    catalogue: Catalogue,
    node: NodeView,
    claimant: Place,
    rules: EvictionSettings,
    now_s: float,
) -> list[Holder]:
    """Who has the node's memory, but for the claimant itself."""
    held_mb = held_by_all(view, catalogue, node)
    return [
        _holder(view, node, tenant, held_mb[tenant.place], claimant, rules, now_s)
        for tenant in _tenants(catalogue, node)
        if tenant.place != claimant
    ]


def is_pinned(view: FleetView, entry: Model | None, node: str, model_id: str) -> bool:
    """Whether a model is never evicted there: its entry, or an operator, pinned it."""
    return _is_declared_pinned(entry, node) or view.is_pinned(
        node, model_id, *names_of(entry, model_id)
    )


def _is_declared_pinned(entry: Model | None, node: str) -> bool:
    return entry is not None and node in entry.pinned_on


def _tenants(catalogue: Catalogue, node: NodeView) -> list[Tenant]:
    return node.keep(
        "tenants", (catalogue,), lambda: [_tenant(catalogue, node, s) for s in node.models]
    )


def _tenant(catalogue: Catalogue, node: NodeView, state: ModelState) -> Tenant:
    entry = find_entry(catalogue, state.id)
    names, how = names_of(entry, state.id), _how(state)
    is_settled = state.status in (ModelStatus.LOADED, ModelStatus.SLEEPING)
    # It could not be brought back: it may sleep, and never goes.
    is_lasting = entry is None and how == "unload" and is_settled
    return Tenant(
        place=(node.name, state.id),
        names=names,
        state=state,
        displace=Displace(node=node.name, model=names[0], model_id=state.id, how=how),
        rank=entry.priority if entry else DEFAULT_PRIORITY,
        is_pinned=_is_declared_pinned(entry, node.name) or is_lasting,
        is_settled=is_settled,
        is_ready=is_ready(state),
        is_asleep=state.status == ModelStatus.SLEEPING,
    )


def _holder(
    view: FleetView,
    node: NodeView,
    tenant: Tenant,
    held_mb: Claims,
    claimant: Place,
    rules: EvictionSettings,
    now_s: float,
) -> Holder:
    place, model_id = tenant.place, tenant.place[1]
    is_given = view.leaving.get(place) == claimant
    up_s = view.up_s.get(place)
    return Holder(
        displace=tenant.displace,
        held_mb=held_mb,
        rank=tenant.rank,
        used_s=max(view.used_s.get(place, 0.0), up_s or 0.0),
        is_busy=not tenant.is_asleep and view.busy(node, model_id) > 0,
        is_awaited=tenant.is_ready and tenant.names[0] in view.held,
        is_young=up_s is not None
        and now_s - up_s < rules.min_residency_s  # the most; who is older is not looked at
        and now_s - up_s < stays_s(view, place, tenant.displace.how, rules),
        is_spared=place in view.stayed_s and now_s - view.stayed_s[place] < rules.drain_s,
        is_pinned=tenant.is_pinned
        or (bool(view.pins) and view.is_pinned(node.name, model_id, *tenant.names)),
        is_moving=not tenant.is_settled
        or place in view.loads
        or (place in view.leaving and not is_given),
        is_given=is_given,
    )


def _how(state: ModelState) -> Literal["sleep", "unload"]:
    """The neuron knows what sleeps in its host's memory, and drops the weights, or the model, where that is short."""
    return "sleep" if state.can_sleep and state.status == ModelStatus.LOADED else "unload"


def _may_go(holder: Holder, claimant: Claimant, rules: EvictionSettings, now_s: float) -> bool:
    """Whether a holder may be displaced for a claimant now.

    1. Not what is pinned, on its way, or of a higher priority where that counts.
    2. Who makes room for it already goes on; who was brought up for requests serves them first.
    3. Who is young stays, until the claimant has waited for half of what it may.
    4. Who works stays, until the claimant has waited as long as a residency: then its work is let end, and what comes
       after that waits its turn. Where that was in vain it serves on for as long, and then is asked again; or when the
       claimant has waited for half of what it may.
    """
    if holder.is_pinned or holder.is_moving or _outranks(holder, claimant, rules):  # 1
        return False
    if holder.is_given or holder.is_awaited:  # 2
        return holder.is_given
    waited_s = now_s - claimant.since_s
    if is_urgent(waited_s, rules):
        return True
    if holder.is_young:  # 3
        return False
    return not holder.is_busy or (waited_s >= rules.min_residency_s and not holder.is_spared)  # 4


def _outranks(holder: Holder, claimant: Claimant, rules: EvictionSettings) -> bool:
    return rules.strategy == "priority" and holder.rank > claimant.rank


def _candidates(free: Claims, going: Sequence[Holder], need: Need) -> list[tuple[int, ...]]:
    """Sets of devices that could have room without those that may go: each one alone, or those with most of it."""
    emptied = dict(free)
    for holder in going:
        for index, held_mb in holder.held_mb.items():
            emptied[index] += held_mb
    if need.count != 1:
        chosen = need.choose(emptied)
        return [chosen] if chosen else []
    return [(i,) for i in need.among if emptied.get(i, 0) >= (need.share_mb or 0)]


def _without(
    free: Claims,
    going: Sequence[Holder],
    devices: tuple[int, ...],
    need: Need,
    rules: EvictionSettings,
) -> Room | None:
    """As few as make room on these devices: one after the other until it is enough, less those that did not matter.

    `going` are in the order in which they go.
    """
    share_mb = need.share_mb or 0
    short = {i: share_mb - free[i] for i in devices if free[i] < share_mb}
    chosen: list[Holder] = []
    missing = dict(short)
    for holder in going:
        if not missing:
            break
        if _helps(holder, missing):
            chosen.append(holder)
    if missing:
        return None
    chosen = _needed(chosen, short)
    return Room(
        claims_mb=need.claims_mb(devices),
        displaces=tuple([holder.displace for holder in chosen]),
        loss=_loss(chosen, STRATEGIES[rules.strategy]),
    )


def _helps(holder: Holder, missing: dict[int, int]) -> bool:
    """Whether less is missing without it; what it has is taken off."""
    helps = False
    for index, held_mb in holder.held_mb.items():
        if held_mb and index in missing:
            helps = True
            missing[index] -= held_mb
            if missing[index] <= 0:
                del missing[index]
    return helps


def _needed(chosen: list[Holder], short: Claims) -> list[Holder]:
    """Without those that the others make up for, the last of them first."""
    if len(chosen) < 2:
        return chosen
    spare = {i: sum([h.held_mb.get(i, 0) for h in chosen]) - mb for i, mb in short.items()}
    needed = []
    for holder in reversed(chosen):
        left = {i: mb - holder.held_mb.get(i, 0) for i, mb in spare.items()}
        if min(left.values()) >= 0:
            spare = left
        else:
            needed.append(holder)
    return needed[::-1]


def _in_order(going: Iterable[Holder], rules: EvictionSettings) -> list[Holder]:
    """Who was told to go already goes on; then those that do nothing, then the young, then those that work."""
    order = STRATEGIES[rules.strategy]
    return sorted(
        going,
        key=lambda h: (not h.is_given, h.is_busy, h.is_young, order(h), h.displace.model_id),
    )


def _loss(gone: Sequence[Holder], order: Order) -> tuple[float, ...]:
    """Compared: how many work, how many are young, whom the strategy would keep longest, how many."""
    if len(gone) == 1:  # nearly always, and asked for each device of each node
        return gone[0].is_busy, gone[0].is_young, *order(gone[0]), 1
    worst = max((order(holder) for holder in gone), default=())
    return sum(h.is_busy for h in gone), sum(h.is_young for h in gone), *worst, len(gone)


def _blocked(
    node: NodeView,
    free: Claims,
    holders: Sequence[Holder],
    claimant: Claimant,
    rules: EvictionSettings,
    *,
    is_moving: bool,
) -> Blocked:
    need = claimant.need
    devices = node.discovery.devices if node.discovery else []
    total = {d.index: d.vram_total_mb for d in devices}
    pinned = [holder for holder in holders if holder.is_pinned]
    needs = f"needs {need.count} device(s) with {need.share_mb} MiB free"
    if need.choose(_less(total, pinned)) is None and pinned:
        return Blocked(
            by="pinned", reason=f"{needs}, and pinned or undeclared there: {_names(pinned)}"
        )
    above = [h for h in holders if not h.is_pinned and _outranks(h, claimant, rules)]
    if above and need.choose(_less(total, [*pinned, *above])) is None:
        return Blocked(by="outranked", reason=f"{needs}, and of higher priority: {_names(above)}")
    has = ", ".join(f"{mb} MiB" for mb in free.values())
    others = [h for h in holders if not h.is_pinned and h not in above]
    claimed = {i: mb + sum(h.held_mb.get(i, 0) for h in others) for i, mb in free.items()}
    # what comes up has not taken all that it will, so its room is nobody's yet
    is_moving = is_moving or any(holder.is_moving for holder in holders)
    if need.choose(claimed) is None and not is_moving:
        return Blocked(by="foreign", reason=f"{needs}, has {has}, and no model there could make it")
    return Blocked(by="held", reason=f"{needs}, has {has}; {_why_held(others)}")


def _less(total: Claims, holders: Iterable[Holder]) -> dict[int, int]:
    held = [holder.held_mb for holder in holders]
    return {i: mb - sum(each.get(i, 0) for each in held) for i, mb in total.items()}


def _why_held(holders: Iterable[Holder]) -> str:
    """Why who could make room does not yet."""
    told = [
        f"{holder.displace.model} {_state(holder)}"
        for holder in holders
        if any(holder.held_mb.values()) or holder.is_moving
    ]
    return ", ".join(told) or "a load is under way there"


def _state(holder: Holder) -> str:
    if holder.is_moving:
        return "comes or goes"
    if holder.is_busy or holder.is_awaited:
        return "works"
    return "has just come up" if holder.is_young else "waits its turn"


def _names(holders: Iterable[Holder]) -> str:
    return ", ".join(holder.displace.model for holder in holders)
