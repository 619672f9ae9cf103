# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.errors import LoadRefusedError
from neuron.harnesses.estimating import Asked, Estimate
from neuron.harnesses.figures import CacheKind, Figures
from neuron.harnesses.placing import (
    Placement,
    Share,
    check_ranks,
    choose_rooms,
    memory_share,
    place,
)
from neuron.room import Room

CPU = Room(
    device=Device(index=0, uuid="cpu", name="CPU", vram_total_mb=4096), total_mb=4096, free_mb=4096
)


def gpu(index: int, free_mb: int | None, *, total_mb: int = 24_000, **fields: Any) -> Room:
    uuid = fields.pop("uuid", f"GPU-{index}")
    device = Device(index=index, uuid=uuid, name="G", vram_total_mb=total_mb)
    return Room(device=device, total_mb=total_mb, free_mb=free_mb, **fields)


GPUS = [gpu(0, 5000), gpu(1, 20_000), gpu(2, 20_000)]
LOST = [gpu(0, 24_000, is_lost=True), gpu(1, 10)]
MIG = [gpu(100, 9000, uuid="MIG-a"), gpu(102, 9000, uuid="MIG-b"), gpu(1, 10), gpu(2, 20)]
# 8 tokens are a MiB.
NEEDS = Estimate(fixed_mb=2000, kv_bytes_per_token=131072, is_exact=True, context=32768)


def choose(there: list[Room], **fields: Any) -> list[int]:
    spec = ModelSpec(model_id="m", **fields)
    return [room.device.index for room in choose_rooms(spec, there)]


@pytest.mark.parametrize(
    ("there", "fields", "chosen"),
    [
        (GPUS, {}, [1]),
        (GPUS, {"tensor_parallel": 2}, [1, 2]),
        (GPUS, {"tensor_parallel": 3}, [0, 1, 2]),
        (GPUS, {"devices": [0]}, [0]),
        (GPUS, {"devices": ["GPU-2"]}, [2]),
        (GPUS, {"devices": ["1"]}, [1]),
        (GPUS, {"devices": [2, 0], "tensor_parallel": 2}, [2, 0]),
        (LOST, {}, [1]),
        (MIG, {}, [100]),
        (MIG, {"devices": ["MIG-b"]}, [102]),
        (MIG, {"tensor_parallel": 2}, [1, 2]),
        ([CPU], {}, [0]),
        ([CPU], {"tensor_parallel": 2}, [0]),
        ([CPU], {"devices": ["cpu"]}, [0]),
    ],
)
def test_devices_are_those_asked_for_or_those_with_the_most_room(
    there: list[Room], fields: dict[str, Any], chosen: list[int]
) -> None:
    assert choose(there, **fields) == chosen


@pytest.mark.parametrize(
    ("there", "fields", "kind", "message"),
    [
        (GPUS, {"tensor_parallel": 4}, "tp_infeasible", "tensor_parallel is 4"),
        (GPUS, {"devices": [0, 1]}, "tp_infeasible", "Set tensor_parallel to 2"),
        (LOST, {"tensor_parallel": 2}, "tp_infeasible", "Set tensor_parallel to 1"),
        (GPUS, {"devices": [7]}, "invalid_spec", r"no device 7. There are: 0 \(GPU-0\)"),
        ([CPU], {"devices": ["GPU-0"]}, "invalid_spec", "no device GPU-0"),
        (LOST, {"devices": [0]}, "insufficient_vram", r"device 0 \(GPU-0\) is lost"),
        (LOST[:1], {}, "insufficient_vram", "no GPU of this machine can be reached"),
        (MIG, {"devices": [100, 102], "tensor_parallel": 2}, "tp_infeasible", "MIG instances"),
    ],
)
def test_what_is_not_there_is_refused(
    there: list[Room], fields: dict[str, Any], kind: str, message: str
) -> None:
    with pytest.raises(LoadRefusedError, match=message) as caught:
        choose(there, **fields)
    assert caught.value.facts["load_kind"] == kind


@pytest.mark.parametrize(
    ("heads", "kv_heads", "cache", "ranks", "works"),
    [
        (32, 8, CacheKind.FULL, 4, None),
        (32, 8, CacheKind.FULL, 16, None),
        (32, 8, CacheKind.FULL, 3, "1, 2, 4, 8, 16, 32"),
        (12, 4, CacheKind.FULL, 3, "1, 2, 4, 12"),
        (12, 4, CacheKind.MIXED, 3, None),
        (0, 0, CacheKind.FULL, 3, None),
    ],
)
def test_ranks_must_be_able_to_share_the_heads(
    heads: int, kv_heads: int, cache: CacheKind, ranks: int, works: str | None
) -> None:
    spec = ModelSpec(model_id="m", tensor_parallel=ranks)
    figures = Figures(heads=heads, kv_heads=kv_heads, cache=cache)
    if works is None:
        check_ranks(spec, figures)
        return
    with pytest.raises(
        LoadRefusedError, match=f"What can be is tensor_parallel {works}.$"
    ) as caught:
        check_ranks(spec, figures)
    assert caught.value.facts["load_kind"] == "tp_infeasible"


def placed(there: list[Room], **asked: Any) -> Placement:
    platform = "cpu" if there == [CPU] else "cuda"
    return place(there, NEEDS, Asked(platform=platform, **asked))


def test_the_cache_takes_what_is_left_on_the_device_with_least_room() -> None:
    found = placed([gpu(0, 10_000), gpu(1, 8000)], ranks=2)
    # 8000, less 2000, less what is left alone.
    assert found.cache.kv_cache_mb == 8000 - 2000 - 512
    assert found.fits
    assert found.claims_mb == {0: 7488, 1: 7488}


def test_an_engine_that_does_not_fit_says_what_is_missing_of_each_device() -> None:
    found = placed([gpu(0, 10_000), gpu(1, 2100)], ranks=2)
    assert not found.fits
    assert found.missing_mb == {1: 2000 + 528 - 2100}
    assert found.shares[0] == Share(index=0, needed_mb=2528, free_mb=10_000, total_mb=24_000)


def test_on_the_cpu_all_ranks_take_of_one_device() -> None:
    assert placed([CPU], ranks=2, kv_cache_mb=40).claims_mb == {0: 4080}
    assert placed([CPU], ranks=2, kv_cache_mb=80).missing_mb == {0: 64}


def test_a_device_that_tells_nothing_is_not_held_against_the_engine() -> None:
    found = placed([gpu(0, None, total_mb=0)])
    assert found.fits
    assert found.cache.kv_cache_mb == 16_400
    assert memory_share(found) is None


def test_vllm_is_to_find_free_what_it_claims_less_its_own_context() -> None:
    assert memory_share(placed([gpu(0, 24_000)], kv_cache_mb=6512)) == round(8000 / 24_000, 4)
    assert memory_share(placed([gpu(0, 24_000)], kv_cache_mb=90_000)) == 0.97
