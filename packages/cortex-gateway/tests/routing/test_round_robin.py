# SPDX-License-Identifier: GPL-3.0-or-later
"""Each replica in its turn."""

import msgspec

from cortex_gateway.routing.policy import Replica
from cortex_gateway.routing.round_robin import round_robin


def rounds(replicas: dict[str, Replica], count: int, first_turn: int = 1) -> str:
    chosen = ""
    for turn in range(first_turn, first_turn + count):
        node = round_robin(list(replicas.values())).node
        replicas[node] = msgspec.structs.replace(replicas[node], last_turn=turn)
        chosen += node
    return chosen


def test_each_has_its_turn_and_one_that_comes_later_joins_in() -> None:
    replicas = {name: Replica(node=name, model_id="m") for name in "cab"}
    assert rounds(replicas, 7) == "abcabca"
    replicas["d"] = Replica(node="d", model_id="m")
    assert rounds(replicas, 6, first_turn=8) == "dbcadb"
