# SPDX-License-Identifier: GPL-3.0-or-later
"""The index of where models are is the same whether it is made anew or kept up to date."""

from hypothesis import given
from hypothesis import strategies as st

from cortex_gateway.places import find_places, move_places

IDS = st.sets(st.sampled_from(["m", "org/m", "hub:org/m", "other:org/m", "x"]), max_size=4)
NODES = st.dictionaries(st.sampled_from("abc"), IDS)


def test_a_model_is_found_under_its_id_and_its_bare_name() -> None:
    places = find_places([("b", ["hub:org/m"]), ("a", ["hub:org/m", "x"])])
    both = (("a", "hub:org/m"), ("b", "hub:org/m"))
    assert places == {"hub:org/m": both, "org/m": both, "x": (("a", "x"),)}


@given(nodes=NODES, changed=st.sampled_from("abc"), ids=IDS)
def test_a_change_of_one_node_gives_the_index_of_all(
    nodes: dict[str, set[str]], changed: str, ids: set[str]
) -> None:
    before = find_places(nodes.items())
    kept = dict(before)
    moved = move_places(before, changed, nodes.get(changed, set()), ids)
    assert moved == find_places({**nodes, changed: ids}.items())
    assert before == kept
