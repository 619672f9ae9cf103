# SPDX-License-Identifier: GPL-3.0-or-later
import itertools

import pytest

from cortex_core.node import ModelStatus
from neuron.lifecycle import MOVES, Event, IllegalMoveError, next_status

STATUSES = [None, *ModelStatus]

LIVES = [
    ["load", "ready", "unload", "gone"],
    ["load", "refused"],
    ["load", "failed", "load", "ready", "failed", "unload", "gone"],
    ["load", "unload", "gone"],
    ["load", "ready", "unload", "kept", "unload", "gone"],
    ["load", "ready", "lost", "ready", "lost", "failed"],
    ["load", "ready", "slept", "woken", "ready", "slept", "unload", "gone"],
    ["load", "ready", "slept", "lost", "ready"],
]


@pytest.mark.parametrize("life", LIVES, ids=" ".join)
def test_a_life_goes_through(life: list[str]) -> None:
    status: ModelStatus | None = None
    for event in life:
        status = next_status(status, Event(event))


def test_what_the_table_does_not_have_is_refused() -> None:
    for status, event in itertools.product(STATUSES, Event):
        if (status, event) in MOVES:
            assert next_status(status, event) == MOVES[status, event]
        else:
            with pytest.raises(IllegalMoveError):
                next_status(status, event)


def test_every_status_can_be_reached_and_left() -> None:
    assert {status for status, _ in MOVES} == set(STATUSES)
    assert set(MOVES.values()) == set(STATUSES)
    for status in ModelStatus:
        assert any(before is status and after is not status for (before, _), after in MOVES.items())


def test_everything_but_absence_can_be_unloaded() -> None:
    for status in set(ModelStatus) - {ModelStatus.UNLOADING}:
        assert next_status(status, Event.UNLOAD) is ModelStatus.UNLOADING
