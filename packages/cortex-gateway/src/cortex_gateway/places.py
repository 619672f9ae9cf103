# SPDX-License-Identifier: GPL-3.0-or-later
"""On which nodes is a model, by any of its names? An index, so that nobody has to ask each node. Pure."""

from collections.abc import Iterable, Mapping

from cortex_core.sources import read_model_name

# By id and by bare name: a node, and the id that the model has there; sorted.
Places = Mapping[str, tuple[tuple[str, str], ...]]


def find_places(nodes: Iterable[tuple[str, Iterable[str]]]) -> Places:
    """The index of nodes and the ids of what they have."""
    places: dict[str, tuple[tuple[str, str], ...]] = {}
    for node, ids in nodes:
        _add(places, node, ids)
    return places


def move_places(places: Places, node: str, before: Iterable[str], after: Iterable[str]) -> Places:
    """The index when a node has other models than before. The one given stays as it is."""
    moved = dict(places)
    for name in {name for model_id in before for name in _names(model_id)}:
        rest = tuple(place for place in moved.pop(name) if place[0] != node)
        if rest:
            moved[name] = rest
    _add(moved, node, after)
    return moved


def _add(places: dict[str, tuple[tuple[str, str], ...]], node: str, ids: Iterable[str]) -> None:
    for model_id in ids:
        for name in _names(model_id):
            places[name] = tuple(sorted({*places.get(name, ()), (node, model_id)}))


def _names(model_id: str) -> set[str]:
    return {model_id, read_model_name(model_id).bare}
