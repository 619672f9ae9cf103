# SPDX-License-Identifier: GPL-3.0-or-later
"""What GET /weights says."""

from collections.abc import Mapping
from pathlib import Path

from cortex_core.weights import WeightsReport, WeightsState
from neuron.weights.abilities import Abilities
from neuron.weights.downloads import Flight
from neuron.weights.room import MIB
from neuron.weights.shelves import Shelved


def write_report(
    *,
    shelved: list[Shelved],
    abilities: Mapping[Path, Abilities],
    fixed: list[WeightsState],
    flights: list[Flight],
    in_use: set[Path],
    defaults: set[Path],
    errors: Mapping[str, str],
    budget_mb: int | None,
    free_bytes: int,
) -> WeightsReport:
    """All of it, one entry per model: what is on disk, what is coming, and what did not come.

    Args:
        shelved: what is in the caches.
        abilities: by folder of those, what the models could do.
        fixed: what is in directories of the operator's.
        flights: what is coming.
        in_use: folders of models that are loaded or coming.
        defaults: folders of default models.
        errors: by id, why a download failed.
        budget_mb: of the caches; None: there is none.
        free_bytes: of the disk.
    """
    by_folder = {flight.folder: flight for flight in flights}
    states = [
        _state(
            one,
            abilities.get(one.folder, Abilities()),
            by_folder.pop(one.folder, None),
            in_use,
            defaults,
            errors,
        )
        for one in shelved
    ]
    coming = [
        WeightsState(
            id=flight.model_id,
            scheme=flight.model_id.partition(":")[0],
            in_use=True,
            pinned=flight.folder in defaults,
            progress=flight.progress,
        )
        for flight in by_folder.values()
    ]
    known = {state.id for state in [*states, *coming]}
    failed = [
        WeightsState(id=model_id, last_error=reason)
        for model_id, reason in errors.items()
        if model_id not in known
    ]
    return WeightsReport(
        weights=[*fixed, *states, *coming, *failed],
        used_mb=sum(state.size_mb for state in states),
        budget_mb=budget_mb,
        free_mb=free_bytes // MIB,
    )


def _state(
    one: Shelved,
    could: Abilities,
    flight: Flight | None,
    in_use: set[Path],
    defaults: set[Path],
    errors: Mapping[str, str],
) -> WeightsState:
    found = one.found
    return WeightsState(
        id=one.id,
        scheme=one.source.scheme,
        revision=found.revision,
        size_mb=found.size_mb,
        last_used=int(found.last_used_s),
        complete=found.complete,
        in_use=one.folder in in_use,
        pinned=one.folder in defaults,
        quants=found.quants,
        progress=flight.progress if flight else None,
        last_error=errors.get(one.id),
        capabilities=could.capabilities,
        limits=could.limits,
    )
