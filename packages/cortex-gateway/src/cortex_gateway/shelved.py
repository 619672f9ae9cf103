# SPDX-License-Identifier: GPL-3.0-or-later
"""What do nodes tell of the files of a model that is not loaded? Pure."""

from cortex_core.catalogue import Model
from cortex_core.sources import read_model_name
from cortex_core.weights import WeightsState
from cortex_gateway.view import FleetView


def find_files(view: FleetView, model: Model) -> list[WeightsState]:
    """Its whole files on nodes that are up. A model without a source is that of any: each node's default counts there."""
    name = read_model_name(model.loaded_id)
    return [
        files
        for node in view.nodes
        if node.is_up
        for files in node.weights or ()
        if files.complete
        and read_model_name(files.id).bare == name.bare
        and name.scheme in (None, files.scheme)
    ]


def is_told(view: FleetView) -> bool:
    """Whether there are nodes that are up, and each of them has told its files."""
    up = [node for node in view.nodes if node.is_up]
    return bool(up) and all(node.weights is not None for node in up)
