# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from neuron.harnesses.ranks import choose_ranks
from neuron.room import Room


def room(index: int, total_mb: int, name: str = "D", uuid: str = "GPU", **fields: Any) -> Room:
    device = Device(index=index, uuid=f"{uuid}-{index}", name=name, vram_total_mb=total_mb)
    return Room(device=device, total_mb=total_mb, free_mb=total_mb // 2, **fields)


CPU = Room(
    device=Device(index=0, uuid="cpu", name="CPU", vram_total_mb=100), total_mb=100, free_mb=100
)
SMALL = [room(0, 8_000), room(1, 8_000), room(2, 8_000), room(3, 8_000)]
LARGE = [room(4, 24_000, "L"), room(5, 24_000, "L")]


@pytest.mark.parametrize(
    ("there", "whole_mb", "spec", "ranks", "of"),
    [
        (SMALL, 7_000, {}, 1, SMALL),
        (SMALL, 15_000, {}, 2, SMALL),
        (SMALL, 17_000, {}, 4, SMALL),  # 3 do not divide the heads
        (SMALL, 33_000, {}, 1, SMALL),  # nowhere
        (SMALL + LARGE, 15_000, {}, 1, SMALL + LARGE),
        (SMALL + LARGE, 30_000, {}, 2, LARGE),
        (LARGE + SMALL, 49_000, {}, 1, LARGE + SMALL),
        # As many of each kind could: the larger ones.
        ([room(0, 8_000), room(1, 8_000), room(2, 9_000, "E"), room(3, 9_000, "E")], 15_000, {}, 2, [2, 3]),
        # Of different size or kind they are not taken unasked.
        ([room(0, 8_000), room(1, 10_000)], 15_000, {}, 1, [0, 1]),
        ([room(0, 8_000, "A"), room(1, 8_000, "B")], 15_000, {}, 1, [0, 1]),
        ([room(0, 8_000), room(1, 8_010)], 15_000, {}, 2, [0, 1]),
        ([room(0, 8_000), room(1, 8_000, is_lost=True)], 15_000, {}, 1, [0, 1]),
        ([room(0, 8_000, uuid="MIG"), room(1, 8_000, uuid="MIG")], 15_000, {}, 1, [0, 1]),
        ([room(0, 0), room(1, 0)], 15_000, {}, 1, [0, 1]),  # the driver does not tell
        (SMALL, 15_000, {"tensor_parallel": 1}, 1, SMALL),
        (SMALL, 7_000, {"tensor_parallel": 3}, 3, SMALL),
        (SMALL, 7_000, {"devices": [1, 2]}, 2, SMALL),
        (SMALL, 7_000, {"devices": []}, 1, SMALL),
        ([CPU], 15_000, {}, 1, [CPU]),
        ([CPU], 15_000, {"devices": [0, 0]}, 1, [CPU]),
        ([CPU], 10, {"tensor_parallel": 2}, 2, [CPU]),
    ],
)  # fmt: skip
def test_a_model_gets_the_fewest_ranks_that_hold_it(
    there: list[Room], whole_mb: int, spec: dict[str, Any], ranks: int, of: list[Any]
) -> None:
    found = choose_ranks(
        ModelSpec(model_id="m", **spec),
        there,
        lambda n: whole_mb // n,
        lambda n: 12 % n == 0 and n != 3,
    )
    of = [there[each] if isinstance(each, int) else each for each in of]
    assert (found.ranks, list(found.rooms)) == (ranks, of)
