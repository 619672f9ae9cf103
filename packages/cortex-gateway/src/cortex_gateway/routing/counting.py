# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes may count tokens for a model that none of them has up? Pure."""

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.control import ModelSpec
from cortex_gateway.declared import find_entry, names_of
from cortex_gateway.routing.plan import Serve, find_id
from cortex_gateway.view import FleetView, NodeView


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask, in this order, and for what."""

    spec: ModelSpec
    places: tuple[Serve, ...]


def find_counters(view: FleetView, catalogue: Catalogue, name: str) -> Counters | None:
    """Every node that could have the files of the model that `name` means; which of them has, it knows itself.

    None: nobody declares the model, and no node has it in any state.

    1. Nodes that the catalogue pins it to, and those that have it asleep, loading or failed.
    2. The others with its harness, by name: always the same one of several then has its tokenizer in memory.
    """
    model_id = find_id(view, catalogue, name)
    entry = find_entry(catalogue, model_id)
    names = names_of(entry, model_id)
    there = {resident.node.name: resident.state for resident in view.residents(*names)}
    if entry is not None:
        spec = entry.spec()
    elif there:
        state = next(iter(there.values()))
        spec = ModelSpec(model_id=state.id, harness=state.harness)
    else:
        return None
    likely = {*there, *(entry.pinned_on if entry else ())}
    asked = [node for node in view.nodes if _can(view, node, spec.harness)]
    asked.sort(key=lambda node: (node.name not in likely, node.name))
    return Counters(spec=spec, places=tuple(_place(node, names[0], spec) for node in asked))


def _can(view: FleetView, node: NodeView, harness: str) -> bool:
    known = node.discovery is None or harness in node.discovery.harnesses
    return node.is_up and known and node.name not in view.drained


def _place(node: NodeView, model: str, spec: ModelSpec) -> Serve:
    return Serve(node=node.name, model=model, model_id=spec.model_id, reason="counts by its files")
