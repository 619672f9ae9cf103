# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a request, step by step. Nodes are a, b, c; a trailing `-` is down, a `?` was never seen."""

from typing import Any

import msgspec
import pytest

from cortex_core.catalogue import Catalogue, Model
from cortex_core.control import ModelSpec
from cortex_core.discovery import Discovery
from cortex_core.node import Activation, DeviceHealth, Health, ModelActivity, ModelState
from cortex_core.testing import make_device, make_discovery, make_state
from cortex_gateway.eviction import Displace
from cortex_gateway.routing.least_busy import least_busy
from cortex_gateway.routing.plan import (
    Decision,
    Load,
    Queue,
    Refuse,
    Serve,
    Wait,
    Wake,
    find_id,
    plan,
)
from cortex_gateway.view import FleetView, NodeView

ECHO = Model(id="m", harness="echo")
BIG = Model(id="m", vram_mb=20_000)
DECLARED = Model(id="x")
SOURCED = Model(id="org/m", harness="echo", source="hub")
GPU = make_discovery(make_device(0, 24_000))
SMALL = make_discovery(make_device(0, 8_000))


def node(
    name: str,
    *states: ModelState,
    found: Discovery | None = GPU,
    busy: dict[str, int] | None = None,
    free_mb: int | None = None,
) -> NodeView:
    """`busy`: running requests per model, of 2 that may run and 1 that may wait."""
    activities = [
        ModelActivity(id=model, status="loaded", running=count, max_running=2, max_waiting=1)
        for model, count in (busy or {}).items()
    ]
    devices = [DeviceHealth(index=0, vram_free_mb=free_mb)]
    return NodeView(
        name=name.rstrip("-?"),
        endpoint="http://x",
        is_up=name[-1] not in "-?",
        discovery=None if name.endswith("?") else found,
        models=states,
        health=Health(uptime_secs=1, models=activities, devices=devices),
        last_seen_s=None if name.endswith("?") else 1.0,
    )


def check(
    nodes: list[NodeView],
    expected: Decision,
    *,
    models: list[Model] | None = None,
    name: str = "m",
    avoid: str = "",
    may_hold: bool = True,
    **view: Any,
) -> None:
    catalogue = Catalogue(models=models or [], aliases={"alias": "m"})
    view_now = FleetView(nodes=tuple(nodes), **view)
    decided = plan(view_now, catalogue, name, least_busy, frozenset(avoid), may_hold=may_hold)
    assert decided == expected


def serve(
    where: str, model: str = "m", model_id: str | None = None, reason: str = "ready"
) -> Serve:
    return Serve(node=where, model=model, model_id=model_id or model, reason=reason)


def load(where: str, reason: str = "there is room", model: Model = ECHO) -> Load:
    claims_mb = {0: model.vram_mb} if model.vram_mb else {}
    return Load(node=where, model=model.id, spec=model.spec(), reason=reason, claims_mb=claims_mb)


def refuse(code: str, reason: str, **fields: Any) -> Refuse:
    return Refuse(code=code, model="m", reason=reason, **fields)


M = make_state("m")
OTHER = make_state("other")


@pytest.mark.parametrize("name", ["m", "alias"])
@pytest.mark.parametrize("models", [[], [ECHO]], ids=["undeclared", "declared"])
def test_a_ready_replica_serves(name: str, models: list[Model]) -> None:
    check([node("a", OTHER), node("b", M)], serve("b"), name=name, models=models)


def test_the_policy_chooses_among_ready_replicas() -> None:
    check([node("a", M, busy={"m": 2}), node("b", M, busy={"m": 1})], serve("b"))
    check([node("a", M, busy={"m": 0}), node("b", M, busy={"m": 1})], serve("a"))


def test_what_we_sent_since_the_last_poll_counts() -> None:
    nodes = [node("a", M, busy={"m": 0}), node("b", M, busy={"m": 1})]
    check(nodes, serve("b"), in_flight={("a", "m"): 2})


def test_a_full_replica_is_passed_over() -> None:
    check([node("a", M, busy={"m": 3}), node("b", M, busy={"m": 2})], serve("b"))


def test_a_node_that_is_down_does_not_serve() -> None:
    check([node("a-", M), node("b", M)], serve("b"))


@pytest.mark.parametrize("status", ["poisoned", ""])
def test_a_status_that_is_not_loaded_does_not_serve(status: str) -> None:
    check([node("a", make_state("m", status))], load("a"), models=[ECHO])
    check(
        [node("a", make_state("m", status))],
        refuse("model_not_found", "nobody declares or has it"),
    )


def test_a_node_to_avoid_does_not_serve() -> None:
    check([node("a", M), node("b", M)], serve("b"), avoid="a")


@pytest.mark.parametrize("status", ["loading", "unloading"])
@pytest.mark.parametrize("models", [[], [ECHO]], ids=["undeclared", "declared"])
def test_what_is_about_to_change_is_waited_for(status: str, models: list[Model]) -> None:
    expected = Wait(node="b", model="m", model_id="m", reason=f"it is {status} there")
    check([node("a"), node("b", make_state("m", status))], expected, models=models)


@pytest.mark.parametrize("models", [[], [ECHO], [BIG]])
@pytest.mark.parametrize("when", ["pending", "in_progress"])
def test_what_a_node_brings_up_at_its_start_is_waited_for(models: list[Model], when: str) -> None:
    coming = msgspec.convert({"state": "pre_warming", when: ["y", "m"]}, Activation)
    starting, empty = node("a"), node("b", free_mb=24_000)
    health = Health(uptime_secs=1, activation=coming, devices=starting.health.devices)  # type: ignore[union-attr]
    starting = msgspec.structs.replace(starting, health=health)
    reason = "it comes up there at the node's start"
    waits = Wait(node="a", model="m", model_id="m", reason=reason)
    check([empty, starting], waits, models=models)
    check([starting, node("b", make_state("m"))], serve("b"), models=models)
    view = FleetView(nodes=(starting,), drained=frozenset("a"))
    assert not isinstance(plan(view, Catalogue(models=models), "m", least_busy), Wait)
    patterns = Catalogue(aliases={"*": "y"})
    assert find_id(FleetView(nodes=(starting,)), patterns, "m") == "m"


def test_a_load_of_ours_is_waited_for_before_the_node_tells_of_it() -> None:
    expected = Wait(node="b", model="m", model_id="m", reason="a load is under way")
    check([node("a"), node("b")], expected, models=[ECHO], loads={("b", "m"): {}})


def test_a_ready_replica_goes_before_one_that_is_loading() -> None:
    check([node("a", make_state("m", "loading")), node("b", M)], serve("b"))


def test_a_model_that_recovers_is_refused_and_not_loaded_elsewhere() -> None:
    expected = refuse("model_recovering", "the engine failed", node="a")
    check([node("a", make_state("m", "recovering")), node("b")], expected, models=[ECHO])
    check([node("a", make_state("m", "recovering")), node("b", M)], serve("b"), models=[ECHO])


def test_a_declared_model_is_loaded_on_the_emptiest_node() -> None:
    check([node("a", OTHER), node("b")], load("b"), models=[ECHO])
    check([node("b"), node("a")], load("a"), models=[ECHO])


def test_a_model_that_failed_on_the_only_node_is_loaded_again() -> None:
    check([node("a", make_state("m", "failed"))], load("a"), models=[ECHO])
    check([node("a", make_state("m", "failed")), node("b", OTHER)], load("b"), models=[ECHO])


def vllm(model_id: str, status: str = "loaded", vram_mb: int = 20_000, **fields: Any) -> ModelState:
    return ModelState(
        id=model_id, harness="vllm", status=status, devices=[0], vram_used_mb=vram_mb, **fields
    )


def gone(model: str, how: Any = "unload") -> Displace:
    return Displace(node="a", model=model, model_id=model, how=how)


@pytest.mark.parametrize("models", [[], [BIG]], ids=["undeclared", "declared"])
def test_a_sleeping_model_is_woken(models: list[Model]) -> None:
    claims_mb = {0: 20_000} if models else {}
    asleep = vllm("m", "sleeping", 0)
    woken = Wake(node="a", model="m", model_id="m", reason="there is room", claims_mb=claims_mb)
    check([node("a", asleep, free_mb=24_000), node("b")], woken, models=models)
    failed = vllm("m", "failed")
    check([node("b", failed), node("a", asleep, free_mb=24_000)], woken, models=models)


def test_who_has_the_room_makes_it() -> None:
    full = node("a", vllm("x"), free_mb=4_000)
    claims_mb = {0: 20_000}
    expected = Load(
        node="a",
        model="m",
        spec=BIG.spec(),
        reason="x is unloaded for it",
        claims_mb=claims_mb,
        displaces=(gone("x"),),
    )
    check([full], expected, models=[BIG, DECLARED])
    check(
        [full, node("b", OTHER, OTHER, free_mb=20_000)],
        load("b", model=BIG),
        models=[BIG, DECLARED],
    )
    pair = node("a", vllm("x", can_sleep=True), vllm("m", "sleeping", 500), free_mb=3_500)
    woken = Wake(
        node="a",
        model="m",
        model_id="m",
        reason="x is put to sleep for it",
        claims_mb=claims_mb,
        displaces=(gone("x", "sleep"),),
    )
    check([pair], woken, models=[BIG, DECLARED], measured_mb={("a", "m"): 20_000})


def test_room_that_may_be_had_later_is_waited_for() -> None:
    needs = "a: needs 1 device(s) with 20000 MiB free, has 4000 MiB; "

    def queue(why: str) -> Queue:
        return Queue(nodes=("a",), model="m", reason=needs + why)

    busy = node("a", vllm("x"), busy={"x": 1}, free_mb=4_000)
    check([busy], queue("x works"), models=[BIG, DECLARED])
    idle = node("a", vllm("x"), free_mb=4_000)
    check([idle], queue("x works"), models=[BIG, DECLARED], in_flight={("a", "x"): 1})
    check([idle], queue("x works"), models=[BIG, DECLARED], held={"x": 1})
    check([idle], queue("x has just come up"), models=[BIG, DECLARED], up_s={("a", "x"): 0.0})
    coming = node("a", vllm("x", "loading"), free_mb=4_000)
    check([coming], queue("x comes or goes"), models=[BIG, DECLARED])
    making = {("a", "x"): ("a", "y")}
    check([idle], queue("x comes or goes"), models=[BIG, DECLARED], leaving=making)
    check([idle], queue("x comes or goes"), models=[BIG, DECLARED], leaving={("a", "x"): None})
    empty = node("a", free_mb=24_000)
    claimed = Queue(
        nodes=("a",),
        model="m",
        reason="a: needs 1 device(s) with 20000 MiB free, has 14000 MiB; a load is under way there",
    )
    check([empty], claimed, models=[BIG, DECLARED], loads={("a", "x"): {0: 10_000}})


def test_a_model_that_makes_room_waits_for_its_own() -> None:
    at = node("a", vllm("m"), free_mb=4_000)
    making: Any = {"leaving": {("a", "m"): ("a", "y")}, "loads": {("a", "y"): {0: 20_000}}}
    check(
        [at],
        Queue(nodes=("a",), model="m", reason="a: it makes room for y"),
        models=[BIG],
        **making,
    )
    check([at, node("b", free_mb=24_000)], load("b", model=BIG), models=[BIG], **making)
    check([at], Queue(nodes=("a",), model="m", reason="a: it makes room for y"), **making)
    moving: Any = {"leaving": {("a", "m"): None}}
    check([at], Queue(nodes=("a",), model="m", reason="a: an operator has it moved"), **moving)


def test_room_that_only_pins_hold_is_infeasible_and_what_is_not_ours_is_not() -> None:
    pinned = Model(id="x", pinned_on=["a"])
    full = node("a", vllm("x"), free_mb=4_000)
    needs = "a: needs 1 device(s) with 20000 MiB free"
    never = refuse("model_infeasible", f"{needs}, and pinned or undeclared there: x")
    check([full], never, models=[BIG, pinned])
    check([full], never, models=[BIG], pins=frozenset({("a", "x")}))
    away = refuse("no_healthy_node", "b: does not answer")
    check([full, node("b-")], away, models=[BIG, pinned])
    foreign = "has 1000 MiB, and no model there could make it"
    other = node("a", free_mb=1_000)
    check([other], refuse("insufficient_vram", f"{needs}, {foreign}"), models=[BIG])


def test_a_drained_node_serves_nothing() -> None:
    drained: Any = {"drained": frozenset("a")}
    check([node("a", M), node("b", M)], serve("b"), **drained)
    check([node("a", M), node("b")], load("b"), models=[ECHO], **drained)
    check([node("a", M)], refuse("no_healthy_node", "a: is drained"), models=[ECHO], **drained)
    check([node("a", M)], refuse("no_healthy_node", "a: is drained"), **drained)


@pytest.mark.parametrize("status", ["loading", "unloading", "recovering"])
def test_what_a_drained_node_has_on_its_way_is_not_waited_for(status: str) -> None:
    drained: Any = {"drained": frozenset("a")}
    away = refuse("no_healthy_node", "a: is drained")
    coming = node("a", make_state("m", status))
    check([coming, node("b")], load("b"), models=[ECHO], **drained)
    check([coming], away, models=[ECHO], **drained)
    check([coming], away, **drained)
    ours: Any = {"loads": {("a", "m"): {}}, **drained}
    check([node("a"), node("b")], load("b"), models=[ECHO], **ours)


def test_beside_full_replicas_one_more_is_loaded_only_where_it_fits() -> None:
    busy = node("a", M, busy={"m": 3})
    check([busy, node("b", free_mb=20_000)], load("b", model=BIG), models=[BIG])
    last = serve("a", reason="every replica is full")
    check([busy, node("b", free_mb=1_000)], last, models=[BIG])
    check([busy], last, models=[BIG])
    check([busy], last)
    failed = node("b", make_state("m", "failed"), free_mb=20_000)
    check([busy, failed], last, models=[BIG])


def test_what_was_held_in_vain_goes_to_a_full_replica_and_waits_for_nothing() -> None:
    busy, last = node("a", M, busy={"m": 3}), serve("a", reason="every replica is full")
    check([busy, node("b", free_mb=20_000)], last, models=[BIG], may_hold=False)
    loading = node("b", make_state("m", "loading"))
    check([busy, loading], last, models=[BIG], may_hold=False)
    check([node("a", M), node("b")], serve("a"), models=[BIG], may_hold=False)
    expected = refuse("no_healthy_node", "no nodes are configured")
    check([], expected, models=[BIG], may_hold=False)


def test_a_source_is_part_of_what_is_asked_for_and_not_of_the_name() -> None:
    expected = Load(
        node="a",
        model="org/m",
        spec=ModelSpec(model_id="hub:org/m", harness="echo"),
        reason="there is room",
    )
    for name in ("org/m", "hub:org/m"):
        check([node("a")], expected, models=[SOURCED], name=name)
        there = [node("a", make_state("hub:org/m"))]
        check(there, serve("a", "org/m", "hub:org/m"), models=[SOURCED], name=name)


def test_a_bare_name_finds_a_model_with_a_scheme_unless_two_have_it() -> None:
    one = node("a", make_state("hub:org/m"))
    check([one], serve("a", "hub:org/m"), name="org/m")
    two = node("b", make_state("lake:org/m"))
    expected = Refuse(code="model_not_found", model="org/m", reason="nobody declares or has it")
    check([one, two], expected, name="org/m")
    check([one, two], serve("b", "lake:org/m"), name="lake:org/m")


@pytest.mark.parametrize(
    ("nodes", "code", "reason"),
    [
        ([], "model_not_found", "nobody declares or has it"),
        ([node("a", OTHER)], "model_not_found", "nobody declares or has it"),
        ([node("a"), node("b-", OTHER)], "model_not_found", "nobody declares or has it"),
        # who was never asked may have it
        ([node("a"), node("b?")], "no_healthy_node", "b: never answered"),
        # who had it may come back
        ([node("a"), node("b-", M)], "no_healthy_node", "b: does not answer"),
    ],
)
def test_what_nobody_declares(nodes: list[NodeView], code: str, reason: str) -> None:
    check(nodes, refuse(code, reason))


def test_an_undeclared_model_that_failed_says_why() -> None:
    failed = make_state("m", "failed", last_error="no kernel")
    expected = refuse("load_failed", "no kernel", node="a", kind="engine_failed")
    check([node("a", failed)], expected)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([], "no nodes are configured"),
        ([node("a-")], "a: does not answer"),
        ([node("a?")], "a: never answered"),
        ([node("a", found=None)], "a: has not told what it is"),
        ([node("a", found=SMALL), node("b-")], "b: does not answer"),
    ],
)
def test_a_declared_model_whose_nodes_are_away(nodes: list[NodeView], reason: str) -> None:
    check(nodes, refuse("no_healthy_node", reason), models=[BIG])


@pytest.mark.parametrize(
    ("nodes", "model", "reason"),
    [
        (
            [node("a", found=SMALL), node("b", found=make_discovery())],
            BIG,
            "a: needs 1 device(s) of 20000 MiB, has 8000 MiB; b: needs 1 device(s) of 20000 MiB, has no devices",
        ),
        ([node("a-", found=SMALL)], BIG, "a: needs 1 device(s) of 20000 MiB, has 8000 MiB"),
        ([node("a?")], Model(id="m", pinned_on=["z"]), "a: pinned on z"),
    ],
)
def test_a_model_that_can_run_nowhere_is_refused_with_the_arithmetic(
    nodes: list[NodeView], model: Model, reason: str
) -> None:
    check(nodes, refuse("model_infeasible", reason), models=[model])


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("gpt-4", "alias's"),  # an alias, before everything else
        ("gpt-declared", "gpt-declared"),
        ("hub:gpt-declared", "hub:gpt-declared"),
        ("gpt-here", "gpt-here"),
        ("hub:gpt-x/there", "hub:gpt-x/there"),
        ("gpt-x/there", "gpt-x/there"),  # bare
        (
            "gpt-lost",
            "gpt-lost",
        ),  # of a node that is down: not to be answered by another model meanwhile
        ("gpt-5", "pattern's"),
        ("gpt-5-mini", "longer pattern's"),
        ("o1", "default's"),
    ],
)
def test_exact_names_come_first_then_patterns_then_the_default(name: str, model_id: str) -> None:
    aliases = {"gpt-4": "alias's", "gpt-*": "pattern's", "gpt-*-mini": "longer pattern's"}
    declared = [Model(id="gpt-declared", source="hub")]
    nodes = (
        node("a", make_state("gpt-here"), make_state("hub:gpt-x/there")),
        node("b-", make_state("gpt-lost")),
    )
    catalogue = Catalogue(models=declared, aliases=aliases).with_default("default's")
    assert find_id(FleetView(nodes=nodes), catalogue, name) == model_id


def test_without_a_default_an_unknown_name_is_itself() -> None:
    assert find_id(FleetView(nodes=()), Catalogue(), "o1") == "o1"


ADAPTED = make_state("m", adapters={"pirate": "org/pirate"})


def test_an_adapter_is_served_by_a_replica_that_has_it() -> None:
    nodes = [node("a", M, busy={"m": 0}), node("b", ADAPTED, busy={"m": 1})]
    check(nodes, msgspec.structs.replace(serve("b"), adapter="pirate"), name="pirate")
    check(nodes, serve("a"))
    assert serve("a").asked_id == "m"
    assert msgspec.structs.replace(serve("b"), adapter="pirate").asked_id == "pirate"


def test_an_adapter_that_the_catalogue_declares_brings_its_model_up() -> None:
    model = Model(id="m", harness="echo", lora={"pirate": "org/pirate"})
    check([node("a")], load("a", model=model), name="pirate", models=[model])
    waits = Wait(node="a", model="m", model_id="m", reason="it is loading there")
    check([node("a", make_state("m", "loading"))], waits, name="pirate", models=[model])


def test_an_alias_may_mean_an_adapter() -> None:
    catalogue = Catalogue(aliases={"sailor": "pirate"})
    view = FleetView(nodes=(node("a", ADAPTED),))
    decided = plan(view, catalogue, "sailor", least_busy)
    assert decided == msgspec.structs.replace(serve("a"), adapter="pirate")


def test_an_adapter_of_two_models_is_nobodys() -> None:
    other = make_state("other", adapters={"pirate": "org/other"})
    refused = Refuse(code="model_not_found", model="pirate", reason="nobody declares or has it")
    check([node("a", ADAPTED, other)], refused, name="pirate")


def test_on_nodes_that_are_shunned_nothing_comes_up_and_what_does_serves() -> None:
    def decide(*nodes: NodeView, shunned: str) -> Decision:
        return plan(
            FleetView(nodes=nodes),
            Catalogue(models=[ECHO]),
            "m",
            least_busy,
            shunned=frozenset(shunned),
        )

    assert decide(node("a"), node("b"), shunned="a") == load("b")
    assert isinstance(decide(node("a"), shunned="a"), Refuse)
    assert decide(node("a", M), shunned="a") == serve("a")
    assert isinstance(decide(node("a", make_state("m", "loading")), shunned="a"), Wait)
