# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a cold model fits, and which node is the best."""

from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.node import DeviceHealth, Health, ModelState
from cortex_core.testing import make_device, make_discovery, make_state
from cortex_gateway.fleet import FleetView, NodeView
from cortex_gateway.placement import choose_node, fits_now

PAIR = make_discovery(make_device(0, 24_000), make_device(1, 24_000))


def node(name: str, free_mb: tuple[int | None, ...] | None = None, *states: ModelState) -> NodeView:
    health = Health(
        uptime_secs=1,
        devices=[DeviceHealth(index=i, vram_free_mb=mb) for i, mb in enumerate(free_mb or ())],
    )
    return NodeView(
        name=name,
        endpoint="http://x",
        is_up=True,
        discovery=PAIR,
        models=states,
        health=None if free_mb is None else health,
    )


@pytest.mark.parametrize(
    ("free_mb", "fields", "fits"),
    [
        ((24_000, 24_000), {"vram_mb": 24_000}, True),
        ((10_000, 23_999), {"vram_mb": 24_000}, False),
        ((10_000, 24_000), {"vram_mb": 24_000}, True),
        # split evenly: each device needs its share, and no more
        ((24_000, 24_000), {"vram_mb": 48_000, "min_devices": 2}, True),
        ((24_000, 23_999), {"vram_mb": 48_000, "min_devices": 2}, False),
        ((5_000, 5_000), {"vram_mb": 9_999, "min_devices": 2}, True),
        # what is not known does not count against a node
        ((1, 1), {}, True),
        ((None, 1), {"vram_mb": 24_000}, True),
        (None, {"vram_mb": 24_000}, True),
        ((1, 1), {"vram_mb": 24_000, "harness": "echo"}, True),
    ],
)
def test_a_model_fits_where_each_device_has_its_share_free(
    free_mb: tuple[int | None, ...] | None, fields: dict[str, Any], fits: bool
) -> None:
    assert fits_now(node("a", free_mb), Model(id="m", **fields)) is fits


FULL, FREE = (1, 1), (24_000, 24_000)


@pytest.mark.parametrize(
    ("nodes", "loads", "chosen"),
    [
        ([node("b", FREE), node("a", FREE)], set(), "a"),
        ([node("a", FULL), node("b", FREE, make_state("x"))], set(), "b"),
        ([node("a", FREE, make_state("m", "failed")), node("b", FREE, make_state("x"), make_state("y"))], set(), "b"),
        ([node("a", FULL), node("b", FREE, make_state("m", "failed"))], set(), "b"),
        ([node("a", FREE, make_state("x")), node("b", FREE)], set(), "b"),
        ([node("a", FREE), node("b", FREE)], {("a", "x")}, "b"),
    ],
)  # fmt: skip
def test_the_best_node_has_room_no_failure_and_few_models(
    nodes: list[NodeView], loads: set[tuple[str, str]], chosen: str
) -> None:
    view = FleetView(nodes=tuple(nodes), loads=frozenset(loads))
    assert choose_node(view, Model(id="m", vram_mb=20_000), tuple(nodes)).name == chosen
