# SPDX-License-Identifier: GPL-3.0-or-later
"""Who makes room on a node, and who may not. One device of 24 000 MiB unless a test says otherwise; it is 1000 s."""

from typing import Any

import pytest

from cortex_core.catalogue import Catalogue, Model
from cortex_core.node import DeviceHealth, Health, ModelActivity, ModelState
from cortex_core.testing import make_device, make_discovery
from cortex_gateway.config import EvictionSettings
from cortex_gateway.eviction import Blocked, Claimant, Room, find_idle, find_room
from cortex_gateway.memory import Need
from cortex_gateway.testing import declare_all
from cortex_gateway.view import FleetView, NodeView

NOW_S = 1000.0


def vllm(model_id: str, vram_mb: int, *devices: int, **fields: Any) -> ModelState:
    fields = {"status": "loaded", **fields}
    return ModelState(
        id=model_id, harness="vllm", devices=list(devices or (0,)), vram_used_mb=vram_mb, **fields
    )


def make_node(*states: ModelState, count: int = 1, running: str = "") -> NodeView:
    free_mb = [24_000] * count
    for state in states:
        for index in state.devices:
            free_mb[index] -= (state.vram_used_mb or 0) // len(state.devices)
    devices = [DeviceHealth(index=i, vram_free_mb=mb) for i, mb in enumerate(free_mb)]
    working = [ModelActivity(id=each, status="loaded", running=1) for each in running]
    return NodeView(
        name="a",
        endpoint="http://x",
        is_up=True,
        discovery=make_discovery(*(make_device(i, 24_000) for i in range(count))),
        models=states,
        health=Health(uptime_secs=1, devices=devices, models=working),
    )


def find(
    node: NodeView,
    needs_mb: int,
    *,
    count: int = 1,
    rank: int = 100,
    waited_s: float = 0.0,
    models: tuple[Model, ...] = (),
    rules: EvictionSettings | None = None,
    **view: Any,
) -> Room | Blocked:
    devices = node.discovery.devices if node.discovery else []
    need = Need(share_mb=needs_mb, count=count, among=tuple(d.index for d in devices))
    claimant = Claimant(place=("a", "m"), need=need, rank=rank, since_s=NOW_S - waited_s)
    found = FleetView(nodes=(node,), **view)
    catalogue = declare_all(models, node)
    return find_room(found, catalogue, node, claimant, rules or EvictionSettings(), NOW_S)


def goes(node: NodeView, needs_mb: int, **fields: Any) -> str:
    """Who, one after the other; `-`: nobody has to; what blocks it, where it is blocked."""
    found = find(node, needs_mb, **fields)
    if isinstance(found, Blocked):
        return found.by
    return " ".join(each.model for each in found.displaces) or "-"


def used(**times_s: float) -> dict[tuple[str, str], float]:
    return {("a", model): at_s for model, at_s in times_s.items()}


TWO = vllm("x", 10_000), vllm("y", 10_000)


def test_nobody_goes_where_there_is_room() -> None:
    assert goes(make_node(*TWO), 4_000) == "-"
    assert goes(make_node(*TWO), 4_000, rank=200) == "-"


def test_who_was_not_used_for_longest_goes() -> None:
    assert goes(make_node(*TWO), 10_000, used_s=used(x=900, y=800)) == "y"
    assert goes(make_node(*TWO), 10_000, used_s=used(x=800, y=900)) == "x"
    # who was up before us, and was not used since, is old
    assert goes(make_node(*TWO), 10_000, used_s=used(x=800)) == "y"
    assert goes(make_node(*TWO), 10_000) == "x"


def test_as_few_go_as_make_room() -> None:
    three = vllm("x", 2_000), vllm("y", 2_000), vllm("z", 18_000)
    ages = used(x=1, y=2, z=3)
    assert goes(make_node(*three), 18_000, used_s=ages) == "z"
    assert goes(make_node(*three), 4_000, used_s=ages) == "x"
    assert goes(make_node(*three), 6_000, used_s=ages) == "x y"
    assert goes(make_node(*TWO), 24_000) == "x y"


def test_room_is_per_device() -> None:
    pair = make_node(vllm("x", 20_000, 0), vllm("y", 20_000, 1), count=2)
    assert goes(pair, 20_000, used_s=used(x=2, y=1)) == "y"
    assert goes(pair, 20_000, count=2) == "x y"
    # the other device's room is none: both would have 14 000 in sum
    halves = make_node(vllm("x", 17_000, 0), vllm("y", 17_000, 1), count=2)
    assert goes(halves, 7_000) == "-"
    assert goes(halves, 14_000, used_s=used(x=1)) == "y"
    wide = make_node(vllm("w", 40_000, 0, 1), count=2)
    assert goes(wide, 20_000) == "w"


def test_a_model_that_can_goes_to_sleep_and_a_sleeper_is_unloaded() -> None:
    node = make_node(vllm("x", 10_000, can_sleep=True), vllm("y", 10_000))
    found = find(node, 24_000)
    assert isinstance(found, Room)
    assert [(each.model, each.how) for each in found.displaces] == [("x", "sleep"), ("y", "unload")]
    asleep = vllm("x", 1_000, status="sleeping", can_sleep=True)
    found = find(make_node(asleep), 24_000)
    assert isinstance(found, Room)
    assert [(each.model, each.how) for each in found.displaces] == [("x", "unload")]


def test_pinned_models_stay() -> None:
    pinned = Model(id="x", pinned_on=["a"])
    for fields in (
        {"models": (pinned,)},
        {"pins": frozenset({("a", "x")})},
        {"pins": frozenset({("*", "x")})},
    ):
        assert goes(make_node(*TWO), 10_000, **fields) == "y"
        assert goes(make_node(*TWO), 20_000, **fields) == "pinned"
    found = find(make_node(*TWO), 20_000, models=(pinned,))
    assert isinstance(found, Blocked)
    assert (
        found.reason == "needs 1 device(s) with 20000 MiB free, and pinned or undeclared there: x"
    )
    # its entry is under another name than it is resident under
    sourced = Model(id="x", source="hub", pinned_on=["a"])
    assert goes(make_node(vllm("hub:x", 10_000)), 20_000, models=(sourced,)) == "pinned"


def test_who_works_stays() -> None:
    assert goes(make_node(*TWO, running="x"), 10_000) == "y"
    assert goes(make_node(*TWO), 10_000, in_flight={("a", "x"): 1}) == "y"
    assert goes(make_node(*TWO, running="xy"), 10_000) == "held"


def test_who_came_up_just_now_stays_while_others_will_do_and_while_nobody_waits_long() -> None:
    young = {"up_s": used(x=990)}
    assert goes(make_node(*TWO), 10_000, **young) == "y"
    assert goes(make_node(vllm("x", 20_000)), 10_000, **young) == "held"
    assert goes(make_node(vllm("x", 20_000)), 10_000, up_s=used(x=970)) == "x"
    assert goes(make_node(vllm("x", 20_000)), 10_000, waited_s=149, **young) == "held"
    assert goes(make_node(vllm("x", 20_000)), 10_000, waited_s=150, **young) == "x"
    # and then still the old one first
    assert goes(make_node(*TWO), 10_000, waited_s=150, used_s=used(y=999), **young) == "y"


def test_who_always_works_is_let_end_for_who_has_waited_long() -> None:
    node = make_node(vllm("x", 20_000), running="x")
    assert goes(node, 10_000, waited_s=29) == "held"
    assert goes(node, 10_000, waited_s=30) == "x"
    assert goes(node, 10_000, waited_s=30, up_s=used(x=990)) == "held"
    assert goes(node, 10_000, waited_s=150, up_s=used(x=990)) == "x"
    # idle ones go first all the same
    assert goes(make_node(*TWO, running="x"), 10_000, waited_s=99, used_s=used(y=999)) == "y"
    short = EvictionSettings(max_wait_s=20)
    assert goes(node, 10_000, waited_s=10, rules=short) == "x"


def test_who_was_brought_up_for_requests_serves_them_first() -> None:
    assert goes(make_node(*TWO), 10_000, held={"x": 1}) == "y"
    assert goes(make_node(*TWO), 20_000, held={"x": 1}, waited_s=999) == "held"
    # a sleeper serves nothing
    asleep = vllm("x", 20_000, status="sleeping")
    assert goes(make_node(asleep), 10_000, held={"x": 1}) == "x"
    making = {("a", "x"): ("a", "m")}
    assert goes(make_node(*TWO), 10_000, held={"x": 1}, leaving=making) == "x"


@pytest.mark.parametrize("status", ["loading", "unloading", "recovering", "strange"])
def test_who_comes_or_goes_is_waited_for(status: str) -> None:
    assert goes(make_node(vllm("x", 20_000, status=status)), 10_000) == "held"


def test_who_makes_room_for_another_is_not_asked_and_who_makes_it_for_this_one_goes_on() -> None:
    node = make_node(vllm("x", 20_000), running="x")
    assert goes(make_node(vllm("x", 20_000)), 10_000, leaving={("a", "x"): ("a", "o")}) == "held"
    assert goes(make_node(vllm("x", 20_000)), 10_000, leaving={("a", "x"): None}) == "held"
    young = used(x=999)
    assert goes(node, 10_000, leaving={("a", "x"): ("a", "m")}, up_s=young) == "x"
    # and nobody goes instead of it
    both = make_node(*TWO, running="y")
    making = {("a", "y"): ("a", "m")}
    assert goes(both, 10_000, leaving=making, used_s=used(x=1, y=999)) == "y"


RANKED = Model(id="x", priority=100), Model(id="y", priority=200)
PRIORITY = EvictionSettings(strategy="priority")


@pytest.mark.parametrize(
    ("rank", "needs_mb", "expected"),
    [
        (50, 10_000, "outranked"),
        # equal ranks go both ways
        (100, 10_000, "x"),
        (200, 10_000, "x"),
        (100, 20_000, "outranked"),
        (200, 20_000, "x y"),
    ],
)
def test_a_higher_priority_is_not_displaced(rank: int, needs_mb: int, expected: str) -> None:
    fields: dict[str, Any] = {"models": RANKED, "rank": rank, "used_s": used(x=999, y=1)}
    assert goes(make_node(*TWO), needs_mb, rules=PRIORITY, **fields) == expected


def test_priority_counts_under_that_strategy_alone_and_among_equals_it_is_lru() -> None:
    ages = used(x=999, y=1)
    assert goes(make_node(*TWO), 10_000, rank=50, models=RANKED, used_s=ages) == "y"
    assert goes(make_node(*TWO), 10_000, rules=PRIORITY, used_s=ages) == "y"
    # who is not in the catalogue has the default
    assert goes(make_node(*TWO), 10_000, rank=99, rules=PRIORITY) == "outranked"


def test_what_is_no_model_of_the_fleet_cannot_go() -> None:
    node = make_node(vllm("x", 4_000))
    health = Health(uptime_secs=1, devices=[DeviceHealth(index=0, vram_free_mb=5_000)])
    foreign = NodeView(
        name="a",
        endpoint="",
        is_up=True,
        discovery=node.discovery,
        models=node.models,
        health=health,
    )
    assert goes(foreign, 9_000) == "x"
    assert goes(foreign, 10_000) == "foreign"


@pytest.mark.parametrize(
    ("fields", "is_found"),
    [({}, True), ({"drained": frozenset("a")}, False), ({"pins": frozenset({("a", "x")})}, False)],
)
def test_who_is_idle_goes_unless_it_is_pinned_or_its_node_is_drained(
    fields: Any, is_found: bool
) -> None:
    node = make_node(vllm("x", 1_000))
    view = FleetView(nodes=(node,), **fields)
    found = find_idle(view, declare_all([], node), EvictionSettings(idle_ttl_s=1), NOW_S)
    assert [each.model_id for each in found] == (["x"] if is_found else [])


def test_what_nobody_declares_could_not_be_brought_back_and_so_never_goes() -> None:
    need = Need(share_mb=20_000, count=1, among=(0,))
    claimant = Claimant(place=("a", "m"), need=need, since_s=NOW_S)
    idle_s = EvictionSettings(idle_ttl_s=1)
    for state, goes_by in (
        (vllm("x", 10_000), None),
        (vllm("x", 10_000, can_sleep=True), "sleep"),
        (vllm("x", 10_000, status="sleeping", can_sleep=True), None),
    ):
        node = make_node(state)
        view = FleetView(nodes=(node,))
        found = find_room(view, Catalogue(), node, claimant, EvictionSettings(), NOW_S)
        idle = [each.how for each in find_idle(view, Catalogue(), idle_s, NOW_S)]
        if goes_by is None:
            assert isinstance(found, Blocked)
            assert found.by == "pinned"
            assert found.reason.endswith("pinned or undeclared there: x")
            assert idle == []
        else:
            assert isinstance(found, Room)
            assert [each.how for each in found.displaces] == idle == [goes_by]
