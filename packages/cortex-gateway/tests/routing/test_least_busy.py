# SPDX-License-Identifier: GPL-3.0-or-later
"""The replica with the least to do for its size."""

import pytest

from cortex_gateway.routing.least_busy import least_busy
from cortex_gateway.routing.policy import Replica


def make(node: str, busy: int, max_running: int | None = 8) -> Replica:
    return Replica(node=node, model_id="m", busy=busy, max_running=max_running, max_waiting=4)


@pytest.mark.parametrize(
    ("replicas", "chosen"),
    [
        ([make("a", 3)], "a"),
        ([make("a", 3), make("b", 2)], "b"),
        ([make("a", 1), make("b", 2)], "a"),
        ([make("b", 2), make("a", 2)], "a"),
        # a large one with more to do is less busy than a small one
        ([make("a", 2, max_running=4), make("b", 3, max_running=64)], "b"),
        # sizes that are not all known are not compared
        ([make("a", 2, max_running=4), make("b", 3, max_running=None)], "a"),
        ([make("a", 2, max_running=None), make("b", 1, max_running=None)], "b"),
    ],
)
def test_the_smallest_share_wins_and_ties_go_by_name(replicas: list[Replica], chosen: str) -> None:
    assert least_busy(replicas).node == chosen


@pytest.mark.parametrize(
    ("busy", "max_running", "max_waiting", "is_full"),
    [
        (11, 8, 4, False),
        (12, 8, 4, True),
        (99, None, 4, False),
        (99, 8, None, False),
        (8, 8, 0, True),
    ],
)
def test_a_replica_is_full_when_one_more_would_be_refused(
    busy: int, max_running: int | None, max_waiting: int | None, is_full: bool
) -> None:
    replica = Replica(
        node="a", model_id="m", busy=busy, max_running=max_running, max_waiting=max_waiting
    )
    assert replica.is_full is is_full
