# SPDX-License-Identifier: GPL-3.0-or-later
"""What others see of the fleet: found by name, and worked out once for what a poll found."""

import msgspec

from cortex_core.node import ModelState
from cortex_core.testing import make_state
from cortex_gateway.view import FleetView, NodeView


def make_node(name: str, *states: ModelState, is_up: bool = True) -> NodeView:
    return NodeView(name=name, endpoint=f"http://{name}", is_up=is_up, models=states)


NODES = (
    make_node("a", make_state("hub:org/m"), make_state("x")),
    make_node("b", make_state("hub:org/m")),
    make_node("c", make_state("hub:org/m"), make_state("org/y"), is_up=False),
)
VIEW = FleetView(nodes=NODES)


def found(*names: str) -> list[tuple[str, str]]:
    return [(resident.node.name, resident.state.id) for resident in VIEW.residents(*names)]


def test_a_model_is_found_where_it_is_by_any_of_its_names() -> None:
    assert found("hub:org/m") == found("org/m") == [("a", "hub:org/m"), ("b", "hub:org/m")]
    assert found("org/m", "hub:org/m") == found("org/m")
    assert found("x") == [("a", "x")]
    assert found("org/y") == found("nobody") == []


def test_what_a_node_that_is_down_had_is_known_and_lost() -> None:
    assert VIEW.knows("org/y")
    assert not VIEW.knows("y")
    assert VIEW.lost("org/y") == VIEW.lost("hub:org/m") == ["c"]
    assert VIEW.lost("x") == []


def test_the_view_of_one_node_knows_no_other() -> None:
    alone = VIEW.only("b")
    assert [node.name for node in alone.nodes] == ["b"]
    assert not alone.knows("x")
    assert [resident.node.name for resident in alone.residents("org/m")] == ["b"]


def test_what_was_worked_out_is_kept_while_node_and_basis_are_the_same() -> None:
    node, basis, asked = make_node("a"), {"of": 1}, []

    def work() -> int:
        asked.append(1)
        return len(asked)

    assert [node.keep("n", (basis,), work) for _ in range(3)] == [1, 1, 1]
    assert node.keep("n", (dict(basis),), work) == 2  # equal, but it may have been changed since
    assert node.keep("other", (basis,), work) == 3
    assert msgspec.structs.replace(node, misses=1).keep("n", (basis,), work) == 4
