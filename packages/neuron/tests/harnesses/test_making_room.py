# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from neuron.harnesses.estimating import Asked, Estimate
from neuron.harnesses.making_room import weigh, who_would_go
from neuron.room import Holder, Room


def room(index: int, free_mb: int) -> Room:
    device = Device(index=index, uuid=f"GPU-{index}", name="G", vram_total_mb=24_000)
    return Room(device=device, total_mb=24_000, free_mb=free_mb)


def holder(name: str, used_s: float, *, is_busy: bool = False, **held_mb: int) -> Holder:
    held = {int(device[1:]): mb for device, mb in held_mb.items()}
    return Holder(model_id=name, held_mb=held, is_busy=is_busy, used_s=used_s)


OLD = holder("old", 1.0, g0=4000)
NEW = holder("new", 2.0, g0=9000)
BUSY = holder("busy", 0.0, is_busy=True, g0=9000)
ELSEWHERE = holder("elsewhere", 0.0, g1=9000)


@pytest.mark.parametrize(
    ("missing_mb", "holders", "going"),
    [
        ({}, [OLD], []),
        ({0: 3000}, [NEW, OLD], ["old"]),
        ({0: 3000}, [BUSY, NEW], ["new"]),
        ({0: 12_000}, [NEW, OLD], ["old", "new"]),
        # The oldest turned out not to matter: the next alone is enough.
        ({0: 8000}, [NEW, OLD], ["new"]),
        ({0: 15_000}, [BUSY, NEW, OLD], ["new", "busy"]),
        ({0: 3000}, [ELSEWHERE, OLD], ["old"]),
        ({0: 3000, 1: 3000}, [ELSEWHERE, OLD], ["elsewhere", "old"]),
        ({0: 99_000}, [OLD], ["old"]),
    ],
)
def test_as_few_go_as_will_do_idle_and_old_ones_first(
    missing_mb: dict[int, int], holders: list[Holder], going: list[str]
) -> None:
    assert [holder.model_id for holder in who_would_go(missing_mb, holders)] == going


def check(
    fixed_mb: int, free_mb: list[int], holders: list[Holder], **fields: Any
) -> tuple[list[int], list[str] | None]:
    spec = ModelSpec(model_id="m", **fields)
    asked = Asked(platform="cuda", ranks=spec.tensor_parallel or 1, kv_cache_mb=1000)
    there = [room(index, free) for index, free in enumerate(free_mb)]
    placement, going = weigh(spec, Estimate(fixed_mb=fixed_mb), asked, there, holders)
    names = None if going is None else [holder.model_id for holder in going]
    return [share.index for share in placement.shares], names


@pytest.mark.parametrize(
    ("fixed_mb", "free_mb", "fields", "devices", "going"),
    [
        (1000, [5000, 3000], {}, [0], []),
        # Device 1 has less room now, and more without its idle model.
        (9000, [5000, 3000], {}, [1], ["elsewhere"]),
        (9000, [5000, 3000], {"devices": [0]}, [0], ["new"]),
        (9000, [5000, 3000], {"tensor_parallel": 2}, [0, 1], ["elsewhere", "new"]),
        # Only the busy one has as much.
        (20_000, [2000, 1000], {}, [0], ["old", "new", "busy"]),
        (23_500, [2000, 1000], {}, [0], None),
    ],
)
def test_the_place_is_where_the_fewest_who_matter_would_go(
    fixed_mb: int,
    free_mb: list[int],
    fields: dict[str, Any],
    devices: list[int],
    going: list[str] | None,
) -> None:
    assert check(fixed_mb, free_mb, [BUSY, NEW, OLD, ELSEWHERE], **fields) == (devices, going)
