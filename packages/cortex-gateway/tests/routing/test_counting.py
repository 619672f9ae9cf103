# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.catalogue import Catalogue, Model
from cortex_core.control import ModelSpec
from cortex_core.testing import make_discovery, make_state
from cortex_gateway.routing.counting import find_counters
from cortex_gateway.view import FleetView, NodeView

VLLM = make_discovery(harnesses=("vllm",))
ECHO = make_discovery(harnesses=("echo",))
DECLARED = Model(id="org/m", source="hf", chat_template="T")
SPEC = ModelSpec(model_id="hf:org/m", chat_template="T")


def node(name: str, *models: Any, **fields: Any) -> NodeView:
    given = {"is_up": True, "discovery": VLLM, "last_seen_s": 1.0, **fields}
    return NodeView(name=name, endpoint="http://x", models=models, **given)


def find(nodes: list[NodeView], name: str = "org/m", *models: Model, **view: Any) -> Any:
    catalogue = Catalogue(models=list(models), aliases={"claude": "org/m"})
    found = find_counters(FleetView(nodes=tuple(nodes), **view), catalogue, name)
    return found and (found.spec, [place.node for place in found.places])


@pytest.mark.parametrize("name", ["org/m", "hf:org/m", "claude"])
def test_every_node_that_could_have_the_files_is_asked_with_the_declared_spec(name: str) -> None:
    nodes = [node("b"), node("a"), node("new", discovery=None)]
    assert find(nodes, name, DECLARED) == (SPEC, ["a", "b", "new"])


def test_those_that_have_it_in_some_state_are_asked_first() -> None:
    failed = make_state("hf:org/m", status="failed")
    assert find([node("a"), node("b", failed)], "org/m", DECLARED) == (SPEC, ["b", "a"])


def test_those_it_is_pinned_to_are_asked_first() -> None:
    pinned = Model(id="org/m", pinned_on=["c"])
    spec = ModelSpec(model_id="org/m")
    assert find([node("a"), node("c")], "org/m", pinned) == (spec, ["c", "a"])


def test_what_is_down_drained_or_has_no_such_harness_is_not_asked() -> None:
    nodes = [node("down", is_up=False), node("drained"), node("echo", discovery=ECHO), node("a")]
    found = find(nodes, "org/m", DECLARED, drained=frozenset({"drained"}))
    assert found == (SPEC, ["a"])


def test_a_model_that_nobody_declares_is_counted_where_a_node_has_it() -> None:
    asleep = make_state("hf:org/m", status="sleeping")
    spec = ModelSpec(model_id="hf:org/m", harness="echo")
    assert find([node("a", asleep, discovery=ECHO)]) == (spec, ["a"])
    assert find([node("a")]) is None
