# SPDX-License-Identifier: GPL-3.0-or-later
"""How the fleet is, in a word and in full."""

import pytest

from cortex_core.node import DeviceHealth, Health, ModelActivity, ModelState
from cortex_core.testing import make_device, make_discovery, make_state
from cortex_gateway.status import (
    CatalogueStatus,
    DeviceStatus,
    LoadUnderWay,
    NodeCount,
    Pin,
    Unservable,
    Waiting,
    tell_fleet,
    tell_health,
)
from cortex_gateway.view import FleetView, NodeView, Queued

CATALOGUE = CatalogueStatus(path="/x", found=False, models=0, aliases=0)
BAD = make_state("bad", "failed", last_error="why")


def node(name: str, *states: ModelState, up: bool = True) -> NodeView:
    return NodeView(
        name=name,
        endpoint="http://x",
        is_up=up,
        discovery=make_discovery(make_device(0, 24_000)),
        models=states,
        health=Health(
            uptime_secs=1,
            devices=[DeviceHealth(index=0, vram_used_mb=5, temp_c=40.0)],
            host_ram_free_mb=9,
            models=[ModelActivity(id="m", status="loaded", running=2, waiting=1)],
        ),
        last_seen_s=10.0,
    )


@pytest.mark.parametrize(
    ("nodes", "status", "healthy"),
    [
        ((), "degraded", 0),
        ((node("a", up=False),), "degraded", 0),
        ((node("a"), node("b", up=False)), "ok", 1),
        ((node("a", BAD), node("b")), "impaired", 2),
        ((node("a"), node("b", BAD, up=False)), "ok", 1),
    ],
)
def test_health_is_a_word(nodes: tuple[NodeView, ...], status: str, healthy: int) -> None:
    told = tell_health(FleetView(nodes=nodes), CATALOGUE)
    assert (told.status, told.nodes) == (status, NodeCount(healthy=healthy, total=len(nodes)))
    assert told.catalogue == CATALOGUE


def test_health_names_what_cannot_be_served() -> None:
    told = tell_health(FleetView(nodes=(node("a", BAD, make_state("m")),)), CATALOGUE)
    assert told.unservable == [Unservable(node="a", model="bad", status="failed", reason="why")]


def test_the_fleet_is_told_in_full() -> None:
    view = FleetView(
        nodes=(node("a", make_state("m")), node("b", make_state("m"), up=False)),
        in_flight={("a", "m"): 3, ("b", "m"): 1},
        loads={("a", "n"): {}},
        drained=frozenset("a"),
        pins=frozenset({("*", "m"), ("a", "n")}),
        held={"n": 2, "o": 1},
        queued={"o": Queued(since_s=9.0)},
    )
    told = tell_fleet(view, [], 12.5)
    a, b = told.nodes
    assert (a.drained, b.drained) == (True, False)
    assert told.pins == [Pin(model="m"), Pin(model="n", node="a")]
    assert told.waiting == [
        Waiting(model="n", requests=2),
        Waiting(model="o", requests=1, room_s=3.5),
    ]
    assert (told.in_flight, told.loads) == (4, [LoadUnderWay(node="a", model="n")])
    assert (a.up, a.seen_s_ago, a.in_flight, a.host_ram_free_mb) == (True, 2.5, 3, 9)
    assert a.devices == [
        DeviceStatus(index=0, name="Test GPU", vram_total_mb=24_000, vram_used_mb=5, temp_c=40.0)
    ]
    (model,) = a.models
    assert (model.id, model.running, model.waiting, model.in_flight) == ("m", 2, 1, 3)
    # what it has now is not known
    assert (b.up, b.models, b.devices[0].vram_used_mb, b.host_ram_free_mb) == (
        False,
        [],
        None,
        None,
    )
