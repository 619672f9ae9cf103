# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of one request, from what is known now? Pure."""

from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Catalogue, Model
from cortex_core.control import ModelSpec
from cortex_core.node import ModelStatus
from cortex_gateway.config import EvictionSettings
from cortex_gateway.declared import find_entry, find_parent, may_have, names_of
from cortex_gateway.eviction import Displace, Room
from cortex_gateway.placement import Options, Survey, failed_there, find_options, survey
from cortex_gateway.routing.policy import Policy, Replica
from cortex_gateway.view import Claims, FleetView, Place, Resident

NOBODY: frozenset[str] = frozenset()
# Soon over: a load goes on, and room that is being made is made.
_PASSING = (ModelStatus.LOADING, ModelStatus.UNLOADING)
NO_OPTIONS = Options(best=None, blocked={})
_RULES = EvictionSettings()
_GOING = {"sleep": "put to sleep", "unload": "unloaded"}


class Serve(msgspec.Struct, frozen=True, kw_only=True):
    """Send it there.

    Attributes:
        model: what answers, metrics and logs call it: the catalogue's id where it has one.
        model_id: the id that it is resident under there.
        adapter: the LoRA adapter of it that is meant; None: none is.
    """

    node: str
    model: str
    model_id: str
    reason: str
    adapter: str | None = None

    @property
    def asked_id(self) -> str:
        """What the neuron is asked for."""
        return self.adapter or self.model_id

    @property
    def told_id(self) -> str:
        """What the client is told of in the answer: as GET /v1/models calls it."""
        return self.adapter or self.model


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """It is about to change there; look again afterwards. Fields as in Serve."""

    node: str
    model: str
    model_id: str
    reason: str


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Others have the room that it needs: wait until it can be had on one of these nodes; look again afterwards."""

    nodes: tuple[str, ...]
    model: str
    reason: str

    @property
    def node(self) -> str:
        """The first of them."""
        return self.nodes[0]


class Wake(msgspec.Struct, frozen=True, kw_only=True):
    """Have it woken there, then look again.

    Attributes:
        claims_mb: MiB that it takes of each device.
        displaces: who has to make room first.
    """

    node: str
    model: str
    model_id: str
    reason: str
    claims_mb: Claims = {}
    displaces: tuple[Displace, ...] = ()

    @property
    def place(self) -> Place:
        """Where, and the id that it has there."""
        return self.node, self.model_id


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Have it loaded there, then look again. `spec` is what the neuron is asked for; the rest as in Wake."""

    node: str
    model: str
    spec: ModelSpec
    reason: str
    claims_mb: Claims = {}
    displaces: tuple[Displace, ...] = ()

    @property
    def place(self) -> Place:
        """Where, and the id that it will have there."""
        return self.node, self.spec.model_id


class Refuse(msgspec.Struct, frozen=True, kw_only=True):
    """Answer with the error of this code.

    Attributes:
        code: one of `cortex_core.errors`.
        node: where it failed; None: it is not about one node.
        kind: how a load failed; None: it is not about a load.
    """

    code: str
    model: str
    reason: str
    node: str | None = None
    kind: str | None = None


Decision = Serve | Wait | Queue | Wake | Load | Refuse


def plan(
    view: FleetView,
    catalogue: Catalogue,
    name: str,
    choose: Policy,
    avoid: frozenset[str] = NOBODY,
    *,
    shunned: frozenset[str] = NOBODY,
    may_hold: bool = True,
    eviction: EvictionSettings = _RULES,
    now_s: float = 0.0,
) -> Decision:
    """Say what becomes of a request for `name`, which may be an alias or fit a pattern of them.

    Nodes in `avoid` do not serve; on those in `shunned` nothing is brought up for it.

    Without `may_hold` the request waits for nothing, since that was in vain: steps 2 and 4 to 6 are left out.

    1. Replicas are ready and not full: serve from the one that `choose` names.
    2. It is loading or waking somewhere, or leaving, or a node is to bring it up at its own start: wait for the end of that.
       What a drained node has on its way is not waited for.
    3. Its engine is being restarted, and nobody else has it: refuse, `model_recovering`.
    4. It sleeps where there is room, or is declared and could be loaded where there is room: wake or load it there.
       Beside full replicas only where it did not fail before. Of places that are equal else, where that takes less time.
    5. There is room after others made it: displace them, then wake or load it there, where least is lost and, of what is
       equal else, all of it takes least time, as measured there. Beside full replicas nobody goes.
    6. Who has the room may not go yet, or it is another's turn: wait for room.
    7. Every replica is full: serve from one of them. The neuron counts better than we do, and refuses with its numbers.
    8. Nobody declares it, and it does not sleep anywhere: refuse, as `_refuse_undeclared` says.
    9. Nodes that could run it are down, drained, or never answered: refuse, `no_healthy_node`.
    10. Its room is held by models of a higher priority, or by what is no model of ours: refuse, `insufficient_vram`.
    11. None can ever run it, or only pinned models could make room: refuse, `model_infeasible`, with the arithmetic.

    The answer is stale after the next await.
    """
    model_id = find_id(view, catalogue, name)
    entry = find_entry(catalogue, model_id)
    adapter = _find_adapter(view, catalogue, name, model_id)
    there = view.residents(*names_of(entry, model_id))
    if adapter is not None:
        there = [resident for resident in there if may_have(resident.state, adapter)]
    if entry is None and there:  # a bare name stands for its only bearer
        model_id = there[0].state.id
    names = names_of(entry, model_id)
    ready = [view.replica(r) for r in there if view.serves(r) and r.node.name not in avoid]
    if free := [replica for replica in ready if not replica.is_full]:  # 1
        return _serve(choose(free), entry, adapter, "ready")
    usable = [resident for resident in there if resident.node.name not in view.drained]
    if may_hold and (waiting := _wait(view, usable, names, entry)):  # 2
        return waiting
    if not ready and (back := _with_status(usable, ModelStatus.RECOVERING)):  # 3
        return Refuse(
            code="model_recovering", model=names[0], node=back.node.name, reason="the engine failed"
        )
    options = NO_OPTIONS
    if may_hold:
        options = find_options(view, catalogue, model_id, eviction, now_s, shunned)
        if coming := _bring_up(entry, names[0], options, beside_full=bool(ready)):  # 4, 5
            return coming
        if not ready and (queue := _queue(names[0], options)):  # 6
            return queue
    if ready:  # 7
        return _serve(choose(ready), entry, adapter, "every replica is full")
    if entry is None and not options.blocked:  # 8
        return _refuse_undeclared(view, model_id, there)
    return _refuse_roomless(view, entry, names[0], options)  # 9, 10, 11


def find_id(view: FleetView, catalogue: Catalogue, name: str) -> str:
    """The concrete id that a client's name means.

    1. An alias: its model.
    2. What the catalogue declares, or a node has, had, or brings up of itself: itself.
    3. A LoRA adapter: the model that it belongs to. An alias may name one too.
    4. A pattern of the aliases fits it: that one's model. The default model is the shortest pattern.
    5. Itself, which nobody knows.
    """
    model_id = catalogue.resolve(name)  # 1
    if find_entry(catalogue, model_id) or view.knows(model_id) or view.coming(model_id):  # 2
        return model_id
    if parent := find_parent(view, catalogue, model_id):  # 3
        return parent
    if model_id != name:  # 1
        return model_id
    return catalogue.match(name) or name  # 4, 5


def _find_adapter(view: FleetView, catalogue: Catalogue, name: str, model_id: str) -> str | None:
    """The LoRA adapter that `name` means, where it means `model_id`; None: it means the model itself."""
    name = catalogue.resolve(name)
    return name if name != model_id and find_parent(view, catalogue, name) == model_id else None


def _serve(replica: Replica, entry: Model | None, adapter: str | None, reason: str) -> Serve:
    model = entry.id if entry else replica.model_id
    return Serve(
        node=replica.node, model=model, model_id=replica.model_id, reason=reason, adapter=adapter
    )


def _wait(
    view: FleetView, there: list[Resident], names: tuple[str, ...], entry: Model | None
) -> Wait | None:
    ours = sorted(
        place for place in view.loads if place[1] in names and place[0] not in view.drained
    )
    if ours:
        node, model_id = ours[0]
        return Wait(node=node, model=names[0], model_id=model_id, reason="a load is under way")
    passing = _with_status(there, *_PASSING)
    if passing is None:
        if (coming := view.coming(*names)) is None:
            return None
        node, model_id = coming
        reason = "it comes up there at the node's start"
        return Wait(node=node, model=names[0], model_id=model_id, reason=reason)
    node, state = passing.node.name, passing.state
    model = entry.id if entry else state.id
    return Wait(node=node, model=model, model_id=state.id, reason=f"it is {state.status} there")


def _bring_up(
    entry: Model | None, model: str, options: Options, *, beside_full: bool
) -> Wake | Load | None:
    best = options.best
    if best is None or not isinstance(best.found, Room):
        return None
    failed = entry is not None and failed_there(best.node, entry)
    if beside_full and (failed or not best.is_free):
        return None
    displaces = best.found.displaces
    going = ", ".join(f"{each.model} is {_GOING[each.how]}" for each in displaces)
    reason = f"{going} for it" if going else "there is room"
    if best.asleep is not None:
        return Wake(
            node=best.node.name,
            model=model,
            model_id=best.asleep.id,
            reason=reason,
            claims_mb=best.found.claims_mb,
            displaces=displaces,
        )
    if entry is None:
        return None
    return Load(
        node=best.node.name,
        model=model,
        spec=entry.spec(),
        reason=reason,
        claims_mb=best.found.claims_mb,
        displaces=displaces,
    )


def _queue(model: str, options: Options) -> Queue | None:
    held = {node: found for node, found in options.blocked.items() if found.by == "held"}
    if not held:
        return None
    reason = "; ".join(f"{node}: {found.reason}" for node, found in held.items())
    return Queue(nodes=tuple(held), model=model, reason=reason)


def _refuse_undeclared(view: FleetView, model: str, there: list[Resident]) -> Refuse:
    """Why a model without an entry goes nowhere: it failed; its node is drained, or down; nobody can know yet; nobody has it."""
    if failed := _with_status(there, ModelStatus.FAILED):
        reason = failed.state.last_error or "the neuron does not say why"
        return Refuse(
            code="load_failed",
            model=model,
            node=failed.node.name,
            kind="engine_failed",
            reason=reason,
        )
    if drained := [r.node.name for r in there if r.node.name in view.drained]:
        reason = f"{', '.join(drained)}: is drained"
        return Refuse(code="no_healthy_node", model=model, reason=reason)
    if lost := view.lost(model):
        return Refuse(
            code="no_healthy_node", model=model, reason=f"{', '.join(lost)}: does not answer"
        )
    if unseen := {node.name: node.matter for node in view.nodes if not node.was_seen}:
        reason = _told(unseen)
        return Refuse(code="no_healthy_node", model=model, reason=reason)
    return Refuse(code="model_not_found", model=model, reason="nobody declares or has it")


def _refuse_roomless(view: FleetView, entry: Model | None, model: str, options: Options) -> Refuse:
    found = survey(view, entry) if entry else Survey(feasible=(), absent={}, infeasible={})
    if found.absent or (not found.infeasible and not options.blocked):  # 9
        absent = _told(found.absent) or "no nodes are configured"
        return Refuse(code="no_healthy_node", model=model, reason=absent)
    blocked = {node: each.reason for node, each in options.blocked.items()}
    if any(each.by != "pinned" for each in options.blocked.values()):  # 10
        return Refuse(code="insufficient_vram", model=model, reason=_told(blocked))
    reason = _told({**found.infeasible, **blocked})
    return Refuse(code="model_infeasible", model=model, reason=reason)  # 11


def _told(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{node}: {reason}" for node, reason in reasons.items())


def _with_status(there: list[Resident], *statuses: str) -> Resident | None:
    return next((resident for resident in there if resident.state.status in statuses), None)
