# SPDX-License-Identifier: GPL-3.0-or-later
from neuron.weights.rate import WINDOW_S, Rate


def test_of_nothing_nothing_is_known() -> None:
    rate = Rate()
    assert rate.eta_s(100) is None
    rate.note(0.0, 10)
    rate.note(1.0, 10)
    assert rate.eta_s(100) is None


def test_what_is_left_takes_as_long_as_what_came_lately() -> None:
    rate = Rate()
    rate.note(0.0, 0)
    rate.note(10.0, 100)
    assert rate.eta_s(300) == 20.0
    assert rate.eta_s(100) == 0.0
    # It has become ten times slower; what was before the window does not count.
    for second in range(11, 11 + 2 * int(WINDOW_S)):
        rate.note(float(second), 100 + second - 10)
    assert rate.eta_s(241) == 101.0


def test_a_file_that_begins_again_begins_again() -> None:
    rate = Rate()
    rate.note(0.0, 500)
    rate.note(1.0, 0)
    rate.note(2.0, 10)
    assert rate.eta_s(110) == 10.0
