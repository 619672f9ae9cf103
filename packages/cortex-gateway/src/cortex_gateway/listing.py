# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models are there to be asked for, and where does each stand? The entries of GET /v1/models. Pure."""

import msgspec

from cortex_core.catalogue import Catalogue, Model, is_pattern
from cortex_core.node import ModelState, ModelStatus
from cortex_core.openai import Location, ModelEntry
from cortex_gateway.declared import find_entry, names_of
from cortex_gateway.fleet import FleetView, NodeView, Resident, is_ready
from cortex_gateway.placement import survey

OWNER = "helexa"


def list_models(view: FleetView, catalogue: Catalogue, created: int) -> list[ModelEntry]:
    """Every model that the catalogue declares or a node that is up has, then the aliases of those.

    `created` is Unix seconds. An alias whose model is nowhere is left out, and so are patterns.
    """
    entries = [_declared(view, model, created) for model in catalogue.models]
    entries += [_undeclared(view, model_id, created) for model_id in _strangers(view, catalogue)]
    by_id = {entry.id: entry for entry in entries}
    aliases = [
        msgspec.structs.replace(by_id[target], id=alias, alias_of=target)
        for alias, target in catalogue.aliases.items()
        if target in by_id and not is_pattern(alias)
    ]
    return entries + aliases


def _strangers(view: FleetView, catalogue: Catalogue) -> list[str]:
    """Ids that nodes have, or are about to have, and the catalogue does not name."""
    ids = {
        model_id
        for node in view.nodes
        if node.is_up
        for model_id in [*(state.id for state in node.models), *_coming(node)]
        if find_entry(catalogue, model_id) is None
    }
    return sorted(ids)


def _declared(view: FleetView, model: Model, created: int) -> ModelEntry:
    found = survey(view, model)
    names = names_of(model, model.id)
    there = view.residents(*names)
    return msgspec.structs.replace(
        _entry(model.id, there, created),
        locations=_locations(view, there, names, model.vram_mb),
        feasible_on=[node.name for node in found.feasible],
        reason=found.why_nowhere,
    )


def _undeclared(view: FleetView, model_id: str, created: int) -> ModelEntry:
    there = [r for r in view.residents(model_id) if r.state.id == model_id]
    return msgspec.structs.replace(
        _entry(model_id, there, created),
        locations=_locations(view, there, (model_id,), None),
        feasible_on=[resident.node.name for resident in there],
    )


def _entry(model_id: str, there: list[Resident], created: int) -> ModelEntry:
    states = [resident.state for resident in there]
    loaded = any(is_ready(state) for state in states)
    return ModelEntry(
        id=model_id,
        object="model",
        created=created,
        owned_by=OWNER,
        loaded=loaded,
        residency=_residency(loaded, states),
        capabilities=_capabilities(states),
        # the tightest, since a request may go to any of them
        max_model_len=min((s.limits.context for s in states if s.limits.context), default=None),
        max_output_tokens=min((s.limits.output for s in states if s.limits.output), default=None),
    )


def _residency(loaded: bool, states: list[ModelState]) -> str | None:
    """None, where it is neither serving nor asleep: no neuron tells yet what lies on its disk."""
    if loaded:
        return "serving"
    return "asleep" if any(s.status == ModelStatus.SLEEPING for s in states) else None


def _capabilities(states: list[ModelState]) -> list[str] | None:
    """Those of all replicas together, in their order; None: nobody told any."""
    return list(dict.fromkeys(name for state in states for name in state.capabilities)) or None


def _locations(
    view: FleetView, there: list[Resident], names: tuple[str, ...], vram_mb: int | None
) -> list[Location]:
    found = [Location(r.node.name, r.state.status, r.state.vram_used_mb or vram_mb) for r in there]
    has = {location.node for location in found}
    coming = [
        Location(node.name, ModelStatus.LOADING, vram_mb)
        for node in view.nodes
        if node.is_up and node.name not in has and _is_coming(view, node, names)
    ]
    return found + coming


def _is_coming(view: FleetView, node: NodeView, names: tuple[str, ...]) -> bool:
    """Whether we, or the node itself at its start, have it on its way there."""
    pending = _coming(node)
    return any((node.name, name) in view.loads or name in pending for name in names)


def _coming(node: NodeView) -> list[str]:
    if node.health is None:
        return []
    return [*node.health.activation.in_progress, *node.health.activation.pending]
