# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from neuron.weights.refusals import WeightsError
from neuron.weights.room import MIB, RESERVE_BYTES, Disk, Held, plan_room

LARGE = 10**6 * MIB


def held(key: str, mb: int, last_used_s: float, pinned: bool = False) -> Held:
    return Held(key=key, size_bytes=mb * MIB, last_used_s=last_used_s, pinned=pinned)


HELD = [held("new", 30, 3), held("old", 10, 1), held("middle", 20, 2), held("pinned", 40, 0, True)]


@pytest.mark.parametrize(
    ("needed_mb", "budget_mb", "free_mb", "promised_mb", "evicted"),
    [
        (10, 110, 10**6, 0, []),
        (11, 110, 10**6, 0, ["old"]),
        (20, 110, 10**6, 0, ["old"]),
        (21, 110, 10**6, 0, ["old", "middle"]),
        (70, 110, 10**6, 0, ["old", "middle", "new"]),
        (10, 110, 10**6, 5, ["old"]),
        (0, 50, 10**6, 0, ["old", "middle", "new"]),
        # The disk has less than the budget allows.
        (100, 10**6, 512 + 95, 0, ["old"]),
        (100, 10**6, 512 + 100, 0, []),
        # Without a budget nothing goes, and nothing has to.
        (1000, None, 10**6, 0, []),
    ],
)
def test_the_least_used_go_and_no_more_than_it_takes(
    needed_mb: int, budget_mb: int | None, free_mb: int, promised_mb: int, evicted: list[str]
) -> None:
    disk = Disk(
        free_bytes=free_mb * MIB,
        budget_bytes=None if budget_mb is None else budget_mb * MIB,
        promised_bytes=promised_mb * MIB,
    )
    assert plan_room(needed_mb * MIB, HELD, disk) == evicted


def test_what_does_not_fit_is_told_with_the_arithmetic() -> None:
    with pytest.raises(WeightsError) as caught:
        plan_room(71 * MIB, HELD, Disk(free_bytes=LARGE, budget_bytes=110 * MIB))
    assert caught.value.kind == "insufficient_disk"
    assert "71 MiB are to be fetched, 100 of 110 MiB of the disk budget" in str(caught.value)
    assert "40 MiB of that are pinned" in str(caught.value)
    assert "disk_budget_mb" in caught.value.suggestion


def test_a_full_disk_is_told_with_the_arithmetic() -> None:
    for budget in (None, LARGE):
        disk = Disk(free_bytes=RESERVE_BYTES, budget_bytes=budget)
        with pytest.raises(WeightsError) as caught:
            plan_room(61 * MIB, HELD, disk)
        assert "61 MiB are to be fetched, the disk has 512 MiB free" in str(caught.value)
        assert "/weights/remove" in caught.value.suggestion
