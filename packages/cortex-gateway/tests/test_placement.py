# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a model that is not up could run, and which node is the best."""

from typing import Any

import pytest

from cortex_core.catalogue import Catalogue, Model
from cortex_core.node import DeviceHealth, Health, ModelState
from cortex_core.testing import make_device, make_discovery, make_state
from cortex_gateway.config import EvictionSettings
from cortex_gateway.eviction import Blocked, Displace, Room
from cortex_gateway.placement import expected_s, find_options, survey
from cortex_gateway.testing import declare_all
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
    catalogue = declare_all(models, *nodes)
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


COLD, WARM = {"load": 40.0}, {"load": 4.0}


@pytest.mark.parametrize(
    ("nodes", "took_s", "chosen"),
    [
        # as measured there, and where it never was as on the others
        ([node("a", FREE), node("b", FREE)], {("a", "m"): COLD, ("b", "m"): WARM}, "b"),
        ([node("a", FREE), node("b", FREE, SMALL)], {("a", "m"): COLD, ("b", "m"): WARM}, "b"),
        ([node("a", FREE), node("b", FREE)], {("a", "m"): COLD}, "a"),
        ([node("a", FREE, SMALL), node("b", FREE)], {("a", "m"): COLD}, "b"),
        (
            [node(name, FREE) for name in "abc"],
            {("a", "m"): COLD, ("c", "m"): WARM},
            "c",
        ),
        # less than a second is chance, and of other models it says nothing
        ([node("a", FREE), node("b", FREE)], {("a", "m"): {"load": 4.1}, ("b", "m"): WARM}, "a"),
        ([node("a", FREE), node("b", FREE)], {("a", "x"): COLD}, "a"),
        # to wake is another thing than to load
        (
            [node("a", 23_500, ASLEEP), node("b", 23_500, ASLEEP)],
            {("a", "m"): {"wake": 9.0, "load": 1.0}, ("b", "m"): {"wake": 2.0, "load": 90.0}},
            "b asleep",
        ),
        # with the time that those take who go
        (
            [node("a", FULL, vllm("x")), node("b", FULL, vllm("y"))],
            {("a", "x"): {"unload": 8.0}, ("b", "y"): {"unload": 1.0}},
            "b -y",
        ),
        (
            [node("a", FULL, vllm("x")), node("b", FULL, vllm("y"))],
            {("a", "x"): {"unload": 8.0}, ("a", "m"): WARM, ("b", "y"): {"unload": 1.0}, ("b", "m"): COLD},
            "a -x",
        ),
    ],
)  # fmt: skip
def test_of_equal_places_the_one_where_it_is_up_soonest(
    nodes: list[NodeView], took_s: Any, chosen: str
) -> None:
    assert best(*nodes, took_s=took_s) == chosen


def test_nobody_else_goes_for_a_few_seconds() -> None:
    nodes = node("a", FULL, vllm("x")), node("b", FULL, vllm("y"))
    took_s = {("a", "m"): WARM, ("b", "m"): COLD}
    used_s = {("a", "x"): 900.0, ("b", "y"): 800.0}
    assert best(*nodes, took_s=took_s, used_s=used_s) == "b -y"


def test_nothing_is_brought_up_on_nodes_that_are_shunned() -> None:
    view = FleetView(nodes=(node("a", FREE), node("b", FULL, vllm("x"))))
    catalogue = declare_all([MODEL], *view.nodes)
    found = find_options(view, catalogue, "m", RULES, 1000.0, frozenset("a")).best
    assert found is not None
    assert found.node.name == "b"
    assert find_options(view, catalogue, "m", RULES, 1000.0, frozenset("ab")).best is None


def test_what_is_expected_is_what_was_measured() -> None:
    took_s: Any = {("a", "m"): {"load": 40.0, "wake": 2.0}, ("a", "x"): {"sleep": 3.0}}
    view = FleetView(nodes=(node("a", FREE),), took_s=took_s)
    catalogue = Catalogue(models=[MODEL])
    goes = Displace(node="a", model="x", model_id="x", how="sleep")
    cases = [((), False, 40.0), ((), True, 2.0), ((goes,), False, 43.0)]
    for displaces, is_asleep, seconds in cases:
        room = Room(displaces=displaces)
        assert expected_s(view, catalogue, "a", "m", room, is_asleep=is_asleep) == seconds
    assert expected_s(view, catalogue, "b", "m", Room(), is_asleep=False) is None
