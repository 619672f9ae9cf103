# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engines are to be reloaded, since the memory of their node's devices may be in pieces? Pure."""

from cortex_core.catalogue import Catalogue
from cortex_core.node import ModelState
from cortex_gateway.config import EvictionSettings
from cortex_gateway.declared import name_of
from cortex_gateway.memory import held_by_all
from cortex_gateway.routing.plan import Wake
from cortex_gateway.view import FleetView, NodeView, is_ready


def find_fragmented(view: FleetView, rules: EvictionSettings) -> list[str]:
    """Nodes that have had as many unloads and wakes as may be, since a model was last reloaded there."""
    return [
        node.name
        for node in view.nodes
        if rules.defrag_after_cycles
        and node.is_up
        and node.name not in view.drained
        and cycles_of(node) >= rules.defrag_after_cycles
    ]


def cycles_of(node: NodeView) -> int:
    """Unloads and wakes on a node since a model was last reloaded there, by the neuron's count."""
    return node.health.cycles if node.health else 0


def find_reloads(view: FleetView, catalogue: Catalogue, name: str) -> list[Wake]:
    """The models of a node that could be reloaded now, each as what would have it up again where it was.

    Pinned ones too: they stay where they are. Not those that work, that are waited for, that come or go, or that
    sleep; nor anything while a load is under way there, which would take the room of who is down for a moment; nor on
    a node that is drained, or has left.
    """
    node = next((node for node in view.nodes if node.name == name), None)
    if node is None or not node.is_up or name in view.drained:
        return []
    if any(place[0] == name for place in view.loads):
        return []
    held_mb = held_by_all(view, catalogue, node)
    return [
        Wake(
            node=name,
            model=name_of(catalogue, state.id),
            model_id=state.id,
            reason=f"{cycles_of(node)} unloads and wakes there",
            claims_mb=held_mb.get((name, state.id), {}),
        )
        for state in node.models
        if _is_idle(view, catalogue, node, state)
    ]


def _is_idle(view: FleetView, catalogue: Catalogue, node: NodeView, state: ModelState) -> bool:
    return (
        is_ready(state)
        and (node.name, state.id) not in view.leaving
        and name_of(catalogue, state.id) not in view.held
        and not view.busy(node, state.id)
    )
