# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engines are reloaded after so many cycles: idle ones, of nodes that are due."""

from typing import Any

import pytest

from cortex_core.catalogue import Catalogue, Model
from cortex_core.node import Health, ModelActivity
from cortex_core.testing import make_device, make_discovery, make_state
from cortex_gateway.config import EvictionSettings
from cortex_gateway.defrag import find_fragmented, find_reloads
from cortex_gateway.view import FleetView, NodeView

CATALOGUE = Catalogue(models=[Model(id="m", source="hub")])
HUB_M = make_state("hub:m", vram_used_mb=100, devices=[0])


def view(*states: Any, cycles: int = 3, up: bool = True, **fields: Any) -> FleetView:
    running = fields.pop("running", 0)
    doing = [ModelActivity(id=state.id, status="loaded", running=running) for state in states]
    node = NodeView(
        name="a",
        endpoint="http://a",
        is_up=up,
        discovery=make_discovery(make_device()),
        models=states,
        health=Health(uptime_secs=1, cycles=cycles, models=doing),
    )
    return FleetView(nodes=(node, NodeView(name="b", endpoint="http://b")), **fields)


@pytest.mark.parametrize(
    ("after", "cycles", "fields", "found"),
    [
        (3, 3, {}, ["a"]),
        (3, 9, {}, ["a"]),
        (3, 2, {}, []),
        (0, 9, {}, []),
        (3, 3, {"up": False}, []),
        (3, 3, {"drained": frozenset("a")}, []),
    ],
)
def test_a_node_is_due_after_so_many_cycles(
    after: int, cycles: int, fields: Any, found: list[str]
) -> None:
    rules = EvictionSettings(defrag_after_cycles=after)
    assert find_fragmented(view(cycles=cycles, **fields), rules) == found


@pytest.mark.parametrize(
    ("fields", "is_found"),
    [
        ({}, True),
        ({"pins": frozenset({("a", "m")})}, True),
        ({"running": 1}, False),
        ({"in_flight": {("a", "hub:m"): 1}}, False),
        ({"held": {"m": 1}}, False),
        ({"leaving": {("a", "hub:m"): None}}, False),
        ({"loads": {("a", "other"): {}}}, False),
        ({"loads": {("b", "other"): {}}}, True),
        ({"up": False}, False),
        ({"drained": frozenset("a")}, False),
    ],
)
def test_who_works_is_waited_for_or_moves_is_let_be(fields: Any, is_found: bool) -> None:
    found = find_reloads(view(HUB_M, **fields), CATALOGUE, "a")
    assert [(each.model, each.model_id, each.claims_mb) for each in found] == (
        [("m", "hub:m", {0: 100})] if is_found else []
    )


def test_of_a_node_that_has_left_nothing_is_reloaded() -> None:
    assert find_reloads(view(HUB_M), CATALOGUE, "gone") == []


@pytest.mark.parametrize("status", ["sleeping", "loading", "unloading", "recovering", "failed"])
def test_only_what_serves_is_reloaded(status: str) -> None:
    assert find_reloads(view(make_state("hub:m", status)), CATALOGUE, "a") == []
