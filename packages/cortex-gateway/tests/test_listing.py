# SPDX-License-Identifier: GPL-3.0-or-later
"""The entries of GET /v1/models, from a fleet and a catalogue."""

from typing import Any

import msgspec

from cortex_core.catalogue import Catalogue, Model
from cortex_core.node import Activation, Health, Limits, ModelState
from cortex_core.openai import Location, ModelEntry
from cortex_core.testing import make_device, make_discovery, make_state
from cortex_gateway.listing import list_models
from cortex_gateway.view import FleetView, NodeView

GPU = make_discovery(make_device(0, 24_000), harnesses=("vllm",))
BIG = Model(id="big", vram_mb=20_000)


def node(
    name: str, *states: ModelState, up: bool = True, pending: list[str] | None = None
) -> NodeView:
    return NodeView(
        name=name,
        endpoint="http://x",
        is_up=up,
        discovery=GPU,
        models=states,
        health=Health(uptime_secs=1, activation=Activation(pending=pending or [])),
        last_seen_s=1.0,
    )


def listed(*nodes: NodeView, loads: Any = None, **catalogue: Any) -> list[ModelEntry]:
    return list_models(FleetView(nodes=nodes, loads=loads or {}), Catalogue(**catalogue), 7)


def entry(model_id: str, **fields: Any) -> ModelEntry:
    base: dict[str, Any] = {"loaded": False, "feasible_on": [], "locations": []}
    return ModelEntry(
        id=model_id, object="model", created=7, owned_by="helexa", **{**base, **fields}
    )


def test_nothing_is_listed_where_nothing_is_known() -> None:
    assert listed() == []
    assert listed(node("a")) == []


def test_a_declared_model_tells_where_it_could_run() -> None:
    assert listed(node("a"), node("b", up=False), models=[BIG]) == [entry("big", feasible_on=["a"])]


def test_a_model_that_can_run_nowhere_tells_the_arithmetic() -> None:
    huge = Model(id="huge", vram_mb=48_000)
    reason = "a: needs 1 device(s) of 48000 MiB, has 24000 MiB"
    assert listed(node("a"), models=[huge]) == [entry("huge", reason=reason)]


def test_a_model_that_serves_has_its_location_and_the_tightest_limits() -> None:
    a = make_state(
        "big", capabilities=["text"], limits=Limits(context=4096, output=512), vram_used_mb=19_000
    )
    b = make_state("big", "sleeping", capabilities=["text", "tools"], limits=Limits(context=2048))
    assert listed(node("a", a), node("b", b), models=[BIG]) == [
        entry(
            "big",
            loaded=True,
            residency="serving",
            feasible_on=["a", "b"],
            locations=[Location("a", "loaded", 19_000), Location("b", "sleeping", 20_000)],
            capabilities=["text", "tools"],
            max_model_len=2048,
            max_output_tokens=512,
        )
    ]


def test_what_is_not_loaded_does_not_claim_to_serve() -> None:
    for status, residency in (("sleeping", "asleep"), ("loading", None), ("poisoned", None)):
        (found,) = listed(node("a", make_state("m", status)))
        assert (found.loaded, found.residency) == (False, residency)
        assert found.locations == [Location("a", status)]


def test_what_a_node_that_is_down_had_is_not_listed() -> None:
    assert listed(node("a", make_state("m"), up=False)) == []
    (found,) = listed(node("a", make_state("big"), up=False, pending=["big"]), models=[BIG])
    assert (found.loaded, found.locations) == (False, [])
    (found,) = listed(node("a", up=False), models=[BIG], loads={("a", "big"): {}})
    assert (found.loaded, found.locations) == (False, [])


def test_models_that_nobody_declares_come_after_those_that_somebody_does() -> None:
    found = listed(node("a", make_state("z"), make_state("b")), models=[BIG])
    assert [(e.id, e.feasible_on) for e in found] == [("big", ["a"]), ("b", ["a"]), ("z", ["a"])]


def test_what_is_on_its_way_is_told_as_loading() -> None:
    ours: Any = {("a", "big"): {}}
    (found,) = listed(node("a"), node("b", pending=["big"]), models=[BIG], loads=ours)
    assert found.locations == [Location("a", "loading", 20_000), Location("b", "loading", 20_000)]
    (found,) = listed(node("a", pending=["m"]))
    assert (found.id, found.loaded, found.locations) == ("m", False, [Location("a", "loading")])


def test_a_source_is_no_part_of_the_name() -> None:
    models = [Model(id="org/m", source="hub")]
    (found,) = listed(node("a", make_state("hub:org/m")), models=models)
    assert (found.id, found.loaded) == ("org/m", True)


def test_an_alias_is_an_entry_of_its_own_and_a_dead_one_or_a_pattern_is_none() -> None:
    found = listed(
        node("a", make_state("m")),
        models=[BIG],
        aliases={"x": "big", "y": "m", "z": "nowhere", "m-*": "m"},
    )
    by_id = {e.id: e for e in found}
    assert list(by_id) == ["big", "m", "x", "y"]
    assert (by_id["x"].alias_of, by_id["x"].feasible_on) == ("big", ["a"])
    assert (by_id["y"].alias_of, by_id["y"].loaded) == ("m", True)


def test_an_adapter_is_an_entry_of_its_own_beside_its_model() -> None:
    adapted = make_state("big", adapters={"pirate": "org/pirate"})
    plain = make_state("big")
    base, adapter = listed(node("a", adapted), node("b", plain), models=[BIG])
    assert [place.node for place in base.locations or []] == ["a", "b"]
    assert (adapter.id, adapter.parent, adapter.root) == ("pirate", "big", "org/pirate")
    assert [place.node for place in adapter.locations or []] == ["a"]
    assert (adapter.loaded, adapter.residency) == (True, "serving")
    _, adapter = listed(
        node("b", plain), models=[msgspec.structs.replace(BIG, lora={"pirate": "org/pirate"})]
    )
    assert (adapter.loaded, adapter.residency, adapter.locations) == (False, None, [])


def test_an_adapter_that_two_models_have_or_that_is_called_like_another_is_not_listed() -> None:
    adapters = {"m": "org/one", "x": "org/two", "pirate": "org/three"}
    states = make_state("m"), make_state("n", adapters=adapters), make_state("o", adapters=adapters)
    found = listed(node("a", *states), aliases={"x": "m"})
    assert [each.id for each in found] == ["m", "n", "o", "x"]
