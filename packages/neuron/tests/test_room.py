# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.node import DeviceHealth, ModelStatus
from neuron.host.messages import Phase
from neuron.residents import Resident
from neuron.room import held_mb, rooms

GPU = Device(index=0, uuid="GPU-0", name="G", vram_total_mb=24_000)
CPU = Device(index=0, uuid="cpu", name="C", vram_total_mb=4000)
UNIFIED = Device(index=0, uuid="GPU-0", name="G", vram_total_mb=0)


def resident(name: str, status: ModelStatus, claim_mb: int = 8000) -> Resident:
    return Resident(
        spec=ModelSpec(model_id=name),
        status=status,
        began_s=0.0,
        phase=Phase(phase="loading"),
        claims_mb={0: claim_mb} if claim_mb else {},
    )


def free_mb(residents: list[Resident], device: Device = GPU, **fields: Any) -> int | None:
    told = None if device is UNIFIED else 20_000
    given: dict[str, Any] = {
        "healths": [DeviceHealth(index=0, vram_free_mb=told)],
        "used_mb": {},
        "unsettled": [],
        "lost": [],
        **fields,
    }
    (found,) = rooms([device], given.pop("healths"), residents, **given)
    return found.free_mb


@pytest.mark.parametrize(
    ("status", "free"),
    [
        (ModelStatus.LOADING, 12_000),
        (ModelStatus.RECOVERING, 12_000),
        # What these have is in the driver's figure already.
        (ModelStatus.LOADED, 20_000),
        (ModelStatus.SLEEPING, 20_000),
        (ModelStatus.UNLOADING, 20_000),
        (ModelStatus.FAILED, 20_000),
    ],
)
def test_a_claim_counts_until_the_driver_s_figure_has_it(status: ModelStatus, free: int) -> None:
    assert free_mb([resident("a", status)]) == free


def test_what_a_rising_engine_has_taken_already_is_not_counted_twice() -> None:
    rising = resident("a", ModelStatus.LOADING)
    assert free_mb([rising], used_mb={"a": {0: 5000}}) == 17_000
    assert free_mb([rising], used_mb={"a": {0: 9000}}) == 20_000


def test_an_engine_that_came_up_during_the_reading_still_counts() -> None:
    assert free_mb([resident("a", ModelStatus.LOADED)], unsettled=["a"]) == 12_000


def test_several_claims_add_up_and_ones_own_does_not_count() -> None:
    both = [resident("a", ModelStatus.LOADING), resident("b", ModelStatus.LOADING, 15_000)]
    assert free_mb(both) == 0
    assert free_mb(both, without="b") == 12_000


def test_the_cpu_has_what_nobody_was_given() -> None:
    told = [DeviceHealth(index=0, vram_free_mb=1)]
    given = [resident("a", ModelStatus.LOADED, 1000), resident("b", ModelStatus.LOADING, 500)]
    assert free_mb(given, CPU, healths=told) == 2500


def test_a_driver_that_does_not_tell_leaves_it_to_the_claims_or_to_nobody() -> None:
    loaded = [resident("a", ModelStatus.LOADED)]
    assert free_mb(loaded, healths=[]) == 16_000
    assert free_mb(loaded, UNIFIED) is None


def test_a_lost_device_says_so() -> None:
    (found,) = rooms([GPU], [], [], used_mb={}, unsettled=[], lost={0})
    assert found.is_lost


def test_a_model_holds_what_it_uses_else_what_it_was_given() -> None:
    assert held_mb(resident("a", ModelStatus.LOADED), {0: 7000}) == {0: 7000}
    assert held_mb(resident("a", ModelStatus.LOADED), {}) == {0: 8000}
