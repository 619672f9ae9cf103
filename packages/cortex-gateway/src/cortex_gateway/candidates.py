# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes could have served a request, and why did another one, or none? For people, after the fact. Pure."""

from cortex_core.catalogue import Catalogue
from cortex_core.node import ModelState
from cortex_gateway.config import EvictionSettings
from cortex_gateway.declared import find_entry, names_of
from cortex_gateway.eviction import Room
from cortex_gateway.journal import Candidate
from cortex_gateway.placement import room_at, survey
from cortex_gateway.view import FleetView, NodeView, is_ready

# More are not read by anybody, and each costs a look at its memory.
MOST = 16
# Each request pays for these.
MOST_REPLICAS = 8


def name_replicas(view: FleetView, catalogue: Catalogue, model_id: str) -> list[Candidate]:
    """The nodes that have the model, with how busy it is there; empty: one alone has it."""
    names = names_of(find_entry(catalogue, model_id), model_id)
    there = view.residents(*names)[:MOST_REPLICAS]
    if len(there) < 2:
        return []
    return [
        Candidate(node=each.node.name, says=_replica(view, each.node, each.state)) for each in there
    ]


def name_nodes(
    view: FleetView, catalogue: Catalogue, model_id: str, rules: EvictionSettings, now_s: float
) -> list[Candidate]:
    """Every node, with what speaks for it or against it."""
    entry = find_entry(catalogue, model_id)
    names = names_of(entry, model_id)
    found = survey(view, entry) if entry else None
    against = {**found.infeasible, **found.absent} if found else {}
    candidates = []
    for node in view.nodes[:MOST]:
        state = node.find(names)
        if not node.is_up:
            says = against.get(node.name) or node.matter
        elif state is not None and not _is_down(state):
            says = _replica(view, node, state)
        elif node.name in against or entry is None:
            says = against.get(node.name) or "does not have it, and nobody declares it"
        else:
            says = _room(view, catalogue, node, model_id, rules, now_s)
        candidates.append(Candidate(node=node.name, says=says))
    return candidates


def _is_down(state: ModelState) -> bool:
    return state.status in ("sleeping", "failed")


def _replica(view: FleetView, node: NodeView, state: ModelState) -> str:
    if not is_ready(state):
        return f"{state.status} there"
    if node.name in view.drained:
        return "ready, and its node is drained"
    if (node.name, state.id) in view.leaving:
        return "ready, and about to make room"
    told = node.activity(state.id)
    most = "" if told.max_running is None else f" of {told.max_running}"
    return f"ready, {view.busy(node, state.id)}{most} busy"


def _room(
    view: FleetView,
    catalogue: Catalogue,
    node: NodeView,
    model_id: str,
    rules: EvictionSettings,
    now_s: float,
) -> str:
    found = room_at(view, catalogue, node, model_id, rules, now_s)
    if not isinstance(found, Room):
        return f"no room: {found.reason}"
    if not found.displaces:
        return "has room"
    return f"has room once {', '.join(who.model for who in found.displaces)} makes it"
