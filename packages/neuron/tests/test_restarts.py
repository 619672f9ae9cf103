# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.restarts import LONGEST_DELAY_S, Restarts


@pytest.mark.parametrize(
    ("most", "losses_s", "delays_s"),
    [
        (0, [0], [None]),
        (3, [0, 1, 2, 3], [0, 1, 2, None]),
        (3, [0, 1, 2, 100.5], [0, 1, 2, 2]),  # the first is forgotten
        (3, [0, 200, 400], [0, 0, 0]),
        (9, [0] * 10, [0, 1, 2, 4, 8, 16, 32, 60, 60, None]),
    ],
)
def test_each_loss_waits_longer_until_there_are_too_many(
    most: int, losses_s: list[float], delays_s: list[float | None]
) -> None:
    restarts = Restarts(most, 100)
    assert [restarts.note_loss(now_s) for now_s in losses_s] == delays_s


@given(st.integers(0, 8), st.lists(st.floats(0, 50), max_size=40))
def test_no_window_has_more_restarts_than_allowed(most: int, gaps_s: list[float]) -> None:
    restarts, now_s, starts_s = Restarts(most, 100), 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s
        delay_s = restarts.note_loss(now_s)
        if delay_s is None:
            break
        assert 0 <= delay_s <= LONGEST_DELAY_S
        starts_s.append(now_s)
    for start_s in starts_s:
        assert sum(start_s <= other_s < start_s + 100 for other_s in starts_s) <= most
