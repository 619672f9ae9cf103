# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a model that is not up could run, and which node is the best."""

from typing import Any

import pytest

from cortex_core.catalogue import Catalogue, Model
from cortex_core.node import DeviceHealth, Health, ModelState
from cortex_core.testing import make_device, make_discovery, make_state
from cortex_gateway.config import EvictionSettings
from cortex_gateway.eviction import Blocked
from cortex_gateway.placement import find_options, survey
from cortex_gateway.view import FleetView, Needs, NodeView, Queued

GPU = make_discovery(make_device(0, 24_000))
MODEL = Model(id="m", vram_mb=20_000)
RULES = EvictionSettings(min_residency_s=30, max_wait_s=300)


def node(name: str, free_mb: int, *states: ModelState) -> NodeView:
    return NodeView(
        name=name,
        endpoint="http://x",
        is_up=True,
        discovery=GPU,
        models=states,
        health=Health(uptime_secs=1, devices=[DeviceHealth(index=0, vram_free_mb=free_mb)]),
        last_seen_s=1.0,
    )


def vllm(model_id: str, status: str = "loaded", vram_mb: int = 20_000) -> ModelState:
    return ModelState(id=model_id, harness="vllm", status=status, devices=[0], vram_used_mb=vram_mb)


def best(
    *nodes: NodeView, models: tuple[Model, ...] = (MODEL,), now_s: float = 1000.0, **view: Any
) -> str:
    """Node, whether it sleeps there, and who goes."""
    catalogue = Catalogue(models=list(models))
    found = find_options(FleetView(nodes=nodes, **view), catalogue, "m", RULES, now_s).best
    if found is None or isinstance(found.found, Blocked):
        return "nowhere"
    goes = "".join(f" -{each.model}" for each in found.found.displaces)
    return f"{found.node.name}{' asleep' if found.asleep else ''}{goes}"


FREE, FULL = 24_000, 4_000
ASLEEP = vllm("m", "sleeping", 500)
SMALL = make_state("x")


@pytest.mark.parametrize(
    ("nodes", "chosen"),
    [
        ([node("b", FREE), node("a", FREE)], "a"),
        ([node("a", FULL, vllm("x")), node("b", FREE, SMALL, SMALL)], "b"),
        ([node("a", FREE, SMALL), node("b", FREE)], "b"),
        ([node("a", FREE, vllm("m", "failed")), node("b", FREE, SMALL, SMALL)], "b"),
        # nobody goes where somebody has room, even where the last engine failed
        ([node("a", FULL, vllm("x")), node("b", FREE, vllm("m", "failed"))], "b"),
        # asleep goes before cold, and free before both
        ([node("a", FREE), node("b", 23_500, ASLEEP)], "b asleep"),
        ([node("a", FREE), node("b", 3_500, vllm("x"), ASLEEP)], "a"),
        ([node("a", FULL, vllm("y")), node("b", 3_500, vllm("x"), ASLEEP)], "b asleep -x"),
        ([node("a", FULL, vllm("x"))], "a -x"),
        ([node("a", 1_000)], "nowhere"),
        ([node("a", FREE, vllm("m", "recovering"))], "nowhere"),
    ],
)
def test_the_best_node(nodes: list[NodeView], chosen: str) -> None:
    assert best(*nodes) == chosen


def test_a_load_under_way_counts_as_a_model() -> None:
    assert best(node("a", FREE), node("b", FREE), loads={("a", "x"): {}}) == "b"


def test_a_run_time_pin_draws_a_model() -> None:
    assert best(node("a", FREE), node("b", FREE), pins=frozenset({("b", "m")})) == "b"


def test_less_is_lost_where_the_older_goes() -> None:
    nodes = node("a", FULL, vllm("x")), node("b", FULL, vllm("y"))
    assert best(*nodes, used_s={("a", "x"): 900.0, ("b", "y"): 800.0}) == "b -y"


def test_a_drained_node_gets_nothing() -> None:
    nodes = node("a", FREE), node("b", FULL, vllm("y"))
    assert best(*nodes, drained=frozenset("a")) == "b -y"
    assert survey(FleetView(nodes=nodes, drained=frozenset("a")), MODEL).absent == {
        "a": "is drained"
    }


def test_a_node_whose_neuron_says_never_is_not_asked_again() -> None:
    needs = {("a", "m"): Needs(never="too large")}
    assert best(node("a", FREE), node("b", FREE), needs=needs) == "b"
    found = survey(FleetView(nodes=(node("a", FREE),), needs=needs), MODEL)
    assert found.why_nowhere == "a: too large"


def test_who_waits_longer_goes_first() -> None:
    other = Model(id="o", vram_mb=20_000)
    at = node("a", FULL, vllm("x"))
    waits = {"o": Queued(since_s=900.0, nodes=frozenset("a"))}
    models = (MODEL, other)
    assert best(at, models=models, queued=waits) == "nowhere"
    both = {**waits, "m": Queued(since_s=899.0, nodes=frozenset("a"))}
    assert best(at, models=models, queued=both) == "a -x"
    # not for a node that is none of its own, nor while it could not have the room either, nor where it comes up
    elsewhere = {"o": Queued(since_s=900.0, nodes=frozenset("b"))}
    assert best(at, models=models, queued=elsewhere) == "a -x"
    pinned = Model(id="o", vram_mb=23_000, min_device_vram_mb=40_000)
    assert best(at, models=(MODEL, pinned), queued=waits) == "a -x"
    pair = at, node("b", FULL)
    assert best(*pair, models=models, queued=waits, loads={("b", "o"): {0: 20_000}}) == "a -x"
