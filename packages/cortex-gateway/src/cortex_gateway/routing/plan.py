# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of one request, from what is known now? Pure."""

import msgspec

from cortex_core.catalogue import Catalogue, Model
from cortex_core.control import ModelSpec
from cortex_core.node import ModelStatus
from cortex_gateway.fleet import FleetView, Resident, is_ready
from cortex_gateway.placement import choose_node, failed_there, fits_now, survey
from cortex_gateway.routing.policy import Policy, Replica

NOBODY: frozenset[str] = frozenset()
# Soon over: a load goes on, and room that is being made is made.
_PASSING = (ModelStatus.LOADING, ModelStatus.UNLOADING)


class Serve(msgspec.Struct, frozen=True, kw_only=True):
    """Send it there.

    Attributes:
        model: what answers, metrics and logs call it: the catalogue's id where it has one.
        model_id: the id that it is resident under there.
    """

    node: str
    model: str
    model_id: str
    reason: str


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """It is about to change there; look again afterwards. Fields as in Serve."""

    node: str
    model: str
    model_id: str
    reason: str


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Have it loaded there, then look again. `spec` is what the neuron is asked for; the rest as in Serve."""

    node: str
    model: str
    spec: ModelSpec
    reason: str


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


Decision = Serve | Wait | Load | Refuse


def plan(
    view: FleetView,
    catalogue: Catalogue,
    name: str,
    choose: Policy,
    avoid: frozenset[str] = NOBODY,
    *,
    may_hold: bool = True,
) -> Decision:
    """Say what becomes of a request for `name`, which may be an alias. Nodes in `avoid` do not serve.

    Without `may_hold` the request waits for nothing, since that was in vain: steps 2 and 4 are left out.

    1. Replicas are ready and not full: serve from the one that `choose` names.
    2. It is loading somewhere, or leaving: wait for the end of that.
    3. Its engine is being restarted, and nobody else has it: refuse, `model_recovering`.
    4. It is declared, and a node that is up could run it: load it there; beside full replicas only where it fits now
       and did not fail before.
    5. Every replica is full: serve from one of them. The neuron counts better than we do, and refuses with its numbers.
    6. Nobody declares it: refuse, as `_refuse_undeclared` says.
    7. Nodes that could run it are down, or never answered: refuse, `no_healthy_node`.
    8. None can ever run it: refuse, `model_infeasible`, with the arithmetic.

    The answer is stale after the next await.
    """
    model_id = catalogue.resolve(name)
    entry = find_entry(catalogue, model_id)
    names = names_of(entry, model_id)
    there = view.residents(*names)
    ready = [view.replica(r) for r in there if is_ready(r.state) and r.node.name not in avoid]
    if free := [replica for replica in ready if not replica.is_full]:  # 1
        return _serve(choose(free), entry, "ready")
    if may_hold and (waiting := _wait(view, there, names, entry)):  # 2
        return waiting
    if not ready and (back := _with_status(there, ModelStatus.RECOVERING)):  # 3
        return Refuse(
            code="model_recovering", model=names[0], node=back.node.name, reason="the engine failed"
        )
    if may_hold and entry and (load := _load(view, entry, ready)):  # 4
        return load
    if ready:  # 5
        return _serve(choose(ready), entry, "every replica is full")
    if entry is None:  # 6
        return _refuse_undeclared(view, model_id, there)
    return _refuse_declared(view, entry)  # 7, 8


def find_entry(catalogue: Catalogue, model_id: str) -> Model | None:
    """The catalogue's entry of a concrete id, with or without its source; None: nobody declares it."""
    return catalogue.find(model_id) or next(
        (m for m in catalogue.models if m.source and f"{m.source}:{m.id}" == model_id), None
    )


def names_of(entry: Model | None, model_id: str) -> tuple[str, ...]:
    """Every id that the model may be resident under; the first is what it is called."""
    return (entry.id, entry.spec().model_id) if entry else (model_id,)


def _serve(replica: Replica, entry: Model | None, reason: str) -> Serve:
    model = entry.id if entry else replica.model_id
    return Serve(node=replica.node, model=model, model_id=replica.model_id, reason=reason)


def _wait(
    view: FleetView, there: list[Resident], names: tuple[str, ...], entry: Model | None
) -> Wait | None:
    ours = sorted(place for place in view.loads if place[1] in names)
    if ours:
        node, model_id = ours[0]
        return Wait(node=node, model=names[0], model_id=model_id, reason="a load is under way")
    passing = _with_status(there, *_PASSING)
    if passing is None:
        return None
    node, state = passing.node.name, passing.state
    model = entry.id if entry else state.id
    return Wait(node=node, model=model, model_id=state.id, reason=f"it is {state.status} there")


def _load(view: FleetView, entry: Model, full: list[Replica]) -> Load | None:
    taken = {replica.node for replica in full}
    free = tuple(node for node in survey(view, entry).feasible if node.name not in taken)
    if full:
        free = tuple(n for n in free if fits_now(n, entry) and not failed_there(n, entry))
    if not free:
        return None
    node = choose_node(view, entry, free)
    reason = (
        "it fits" if fits_now(node, entry) else "no node has room now, and this one could make it"
    )
    return Load(node=node.name, model=entry.id, spec=entry.spec(), reason=reason)


def _refuse_undeclared(view: FleetView, model: str, there: list[Resident]) -> Refuse:
    """Why a model without an entry goes nowhere: it failed; its node is down; nobody can know yet; nobody has it."""
    if failed := _with_status(there, ModelStatus.FAILED):
        reason = failed.state.last_error or "the neuron does not say why"
        return Refuse(
            code="load_failed",
            model=model,
            node=failed.node.name,
            kind="engine_failed",
            reason=reason,
        )
    if lost := view.lost(model):
        return Refuse(
            code="no_healthy_node", model=model, reason=f"{', '.join(lost)}: does not answer"
        )
    if unseen := [node.name for node in view.nodes if not node.was_seen]:
        reason = f"{', '.join(unseen)}: never answered"
        return Refuse(code="no_healthy_node", model=model, reason=reason)
    return Refuse(code="model_not_found", model=model, reason="nobody declares or has it")


def _refuse_declared(view: FleetView, entry: Model) -> Refuse:
    found = survey(view, entry)
    if reason := found.why_nowhere:
        return Refuse(code="model_infeasible", model=entry.id, reason=reason)
    absent = "; ".join(f"{node}: {why}" for node, why in found.absent.items())
    return Refuse(
        code="no_healthy_node", model=entry.id, reason=absent or "no nodes are configured"
    )


def _with_status(there: list[Resident], *statuses: str) -> Resident | None:
    return next((resident for resident in there if resident.state.status in statuses), None)
