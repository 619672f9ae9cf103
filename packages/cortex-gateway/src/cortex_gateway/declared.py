# SPDX-License-Identifier: GPL-3.0-or-later
"""Which entry of the catalogue is a model, and under which ids may it be resident? Pure."""

from cortex_core.catalogue import Catalogue, Model


def find_entry(catalogue: Catalogue, model_id: str) -> Model | None:
    """The catalogue's entry of a concrete id, with or without its source; None: nobody declares it."""
    return catalogue.find_loaded(model_id)


def names_of(entry: Model | None, model_id: str) -> tuple[str, ...]:
    """Every id that the model may be resident under; the first is what it is called."""
    return (entry.id, entry.loaded_id) if entry else (model_id,)


def name_of(catalogue: Catalogue, model_id: str) -> str:
    """What the gateway calls a model that is resident under an id."""
    return names_of(find_entry(catalogue, model_id), model_id)[0]
