# SPDX-License-Identifier: GPL-3.0-or-later
"""Which entry of the catalogue is a model, under which ids may it be resident, and which adapters has it? Pure."""

from collections.abc import Mapping

from cortex_core.catalogue import Catalogue, Model
from cortex_core.node import ModelState
from cortex_gateway.view import FleetView, is_ready


def find_entry(catalogue: Catalogue, model_id: str) -> Model | None:
    """The catalogue's entry of a concrete id, with or without its source; None: nobody declares it."""
    return catalogue.find_loaded(model_id)


def names_of(entry: Model | None, model_id: str) -> tuple[str, ...]:
    """Every id that the model may be resident under; the first is what it is called."""
    return (entry.id, entry.loaded_id) if entry else (model_id,)


def name_of(catalogue: Catalogue, model_id: str) -> str:
    """What the gateway calls a model that is resident under an id."""
    return names_of(find_entry(catalogue, model_id), model_id)[0]


def find_parent(view: FleetView, catalogue: Catalogue, name: str) -> str | None:
    """The model that a name is a LoRA adapter of, as the gateway calls it; None: of none, or of several, and so of none."""
    parents = {model.id for model in catalogue.models if name in (model.lora or {})}
    parents |= {
        name_of(catalogue, state.id)
        for node in view.nodes
        if node.is_up
        for state in node.models
        if name in state.adapters
    }
    return parents.pop() if len(parents) == 1 else None


def adapters_of(view: FleetView, entry: Model | None, *names: str) -> Mapping[str, str]:
    """The LoRA adapters of a model, declared or served anywhere: name to repository."""
    declared = (entry.lora or {}) if entry else {}
    served = [resident.state.adapters for resident in view.residents(*names)]
    return {**{name: root for each in served for name, root in each.items()}, **declared}


def may_have(state: ModelState, adapter: str) -> bool:
    """Whether a model's engine serves a LoRA adapter, or may once it is up."""
    return adapter in state.adapters or not is_ready(state)
