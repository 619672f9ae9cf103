# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models are there to be asked for, and where does each stand? The entries of GET /v1/models. Pure."""

from collections.abc import Sequence

import msgspec

from cortex_core.catalogue import Catalogue, Model, is_pattern
from cortex_core.node import Limits, ModelState, ModelStatus
from cortex_core.openai import Location, ModelEntry
from cortex_core.weights import WeightsState
from cortex_gateway.declared import adapters_of, find_entry, find_parent, may_have, names_of
from cortex_gateway.placement import survey
from cortex_gateway.shelved import find_files, is_told
from cortex_gateway.view import FleetView, NodeView, Resident, is_ready

OWNER = "helexa"


def list_models(view: FleetView, catalogue: Catalogue, created: int) -> list[ModelEntry]:
    """Every model that the catalogue declares or a node that is up has, then the aliases of those.

    `created` is Unix seconds. An alias whose model is nowhere is left out, and so are patterns.
    """
    entries = [_declared(view, model, created) for model in catalogue.models]
    entries += [_undeclared(view, model_id, created) for model_id in _strangers(view, catalogue)]
    entries += _adapters(view, catalogue, entries)
    by_id = {entry.id: entry for entry in entries}
    aliases = [
        msgspec.structs.replace(by_id[target], id=alias, alias_of=target)
        for alias, target in catalogue.aliases.items()
        if target in by_id and not is_pattern(alias)
    ]
    return entries + aliases


def _adapters(view: FleetView, catalogue: Catalogue, models: list[ModelEntry]) -> list[ModelEntry]:
    """An entry for each LoRA adapter that clients can ask for by its name, as what its model is."""
    taken = {model.id for model in models} | catalogue.aliases.keys()
    found = []
    for model in models:
        declared = find_entry(catalogue, model.id)
        names = names_of(declared, model.id)
        found += [
            _adapter(model, name, root, view.residents(*names))
            for name, root in adapters_of(view, declared, *names).items()
            if name not in taken and find_parent(view, catalogue, name) == model.id
        ]
    return found


def _adapter(model: ModelEntry, name: str, root: str, there: list[Resident]) -> ModelEntry:
    """As its model, but for replicas that serve without it."""
    lacking = {r.node.name for r in there if not may_have(r.state, name)}
    having = [r.state for r in there if r.node.name not in lacking]
    loaded = any(is_ready(state) for state in having)
    return msgspec.structs.replace(
        model,
        id=name,
        parent=model.id,
        root=root,
        loaded=loaded,
        residency=_residency(loaded, having),
        locations=[each for each in model.locations or [] if each.node not in lacking],
    )


def _strangers(view: FleetView, catalogue: Catalogue) -> list[str]:
    """Ids that nodes have, or are about to have, and the catalogue does not name."""
    ids = {
        model_id
        for node in view.nodes
        if node.is_up
        for model_id in [*(state.id for state in node.models), *node.coming]
        if find_entry(catalogue, model_id) is None
    }
    return sorted(ids)


def _declared(view: FleetView, model: Model, created: int) -> ModelEntry:
    found = survey(view, model)
    names = names_of(model, model.id)
    there = view.residents(*names)
    return msgspec.structs.replace(
        _with_files(view, model, _entry(model.id, there, created)),
        locations=_locations(view, there, names, model.vram_mb),
        feasible_on=[node.name for node in found.feasible],
        reason=found.why_nowhere,
    )


def _with_files(view: FleetView, model: Model, entry: ModelEntry) -> ModelEntry:
    """The same, with what files tell where no engine does."""
    found = find_files(view, model) if model.harness != "echo" else []
    told = _tightest(found)
    context, output = (
        min((limit, model.max_model_len or limit)) if limit else None
        for limit in (told.context, told.output)
    )
    residency = entry.residency
    if residency is None and model.harness != "echo" and (found or is_told(view)):
        residency = "on_disk" if found else "remote"
    return msgspec.structs.replace(
        entry,
        residency=residency,
        capabilities=entry.capabilities or _capabilities(found),
        max_model_len=entry.max_model_len or context,
        max_output_tokens=entry.max_output_tokens or output,
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
    limits = _tightest(states)
    loaded = any(is_ready(state) for state in states)
    return ModelEntry(
        id=model_id,
        object="model",
        created=created,
        owned_by=OWNER,
        loaded=loaded,
        residency=_residency(loaded, states),
        capabilities=_capabilities(states),
        max_model_len=limits.context,
        max_output_tokens=limits.output,
    )


def _tightest(told: Sequence[ModelState | WeightsState]) -> Limits:
    """A request may go to any of them."""
    return Limits(
        context=min((each.limits.context for each in told if each.limits.context), default=None),
        output=min((each.limits.output for each in told if each.limits.output), default=None),
    )


def _residency(loaded: bool, states: list[ModelState]) -> str | None:
    """None, where it is neither serving nor asleep."""
    if loaded:
        return "serving"
    return "asleep" if any(s.status == ModelStatus.SLEEPING for s in states) else None


def _capabilities(states: Sequence[ModelState | WeightsState]) -> list[str] | None:
    """Those of all together, in their order; None: nobody told any."""
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
    return any((node.name, name) in view.loads or name in node.coming for name in names)
