# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.errors import LoadRefusedError
from cortex_core.testing import make_discovery
from neuron.harnesses.placing import choose_devices, claim_ratio

CPU = Device(index=0, uuid="cpu", name="CPU", vram_total_mb=4096)
GPUS = [Device(index=i, uuid=f"GPU-{i}", name="G", vram_total_mb=24_000) for i in range(3)]
FREE_MB = {0: 5000, 1: 20_000, 2: 20_000}


def check(there: list[Device], **fields: Any) -> list[int]:
    spec = ModelSpec(model_id="m", **fields)
    return [device.index for device in choose_devices(spec, make_discovery(*there), FREE_MB)]


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ({}, [1]),
        ({"tensor_parallel": 2}, [1, 2]),
        ({"tensor_parallel": 3}, [0, 1, 2]),
        ({"devices": [0]}, [0]),
        ({"devices": ["GPU-2"]}, [2]),
        ({"devices": ["1"]}, [1]),
        ({"devices": [2, 0], "tensor_parallel": 2}, [2, 0]),
    ],
)
def test_gpus_are_those_asked_for_or_those_with_the_most_room(
    fields: dict[str, Any], chosen: list[int]
) -> None:
    assert check(GPUS, **fields) == chosen


def test_on_the_cpu_all_ranks_share_one_device() -> None:
    assert check([CPU]) == [0]
    assert check([CPU], tensor_parallel=2) == [0]
    assert check([CPU], devices=["cpu"]) == [0]


@pytest.mark.parametrize(
    ("devices", "fields", "kind", "message"),
    [
        ([], {}, "insufficient_vram", "no device"),
        (GPUS, {"tensor_parallel": 4}, "tp_infeasible", "tensor_parallel is 4"),
        (GPUS, {"devices": [0, 1]}, "tp_infeasible", "Set tensor_parallel to 2"),
        (GPUS, {"devices": [7]}, "invalid_spec", r"no device 7. There are: 0 \(GPU-0\)"),
        ([CPU], {"devices": ["GPU-0"]}, "invalid_spec", "no device GPU-0"),
    ],
)
def test_what_is_not_there_is_refused(
    devices: list[Device], fields: dict[str, Any], kind: str, message: str
) -> None:
    with pytest.raises(LoadRefusedError, match=message) as caught:
        check(devices, **fields)
    assert caught.value.facts["load_kind"] == kind


@pytest.mark.parametrize(
    ("devices", "weights_mb", "kv_cache_mb", "ratio"),
    [
        (GPUS[:1], 8000, 2000, 0.5187),
        (GPUS[:2], 16_000, 2000, 0.5187),
        (GPUS[:1], 90_000, 2000, 0.97),
    ],
)
def test_the_claim_is_what_the_engine_will_take(
    devices: list[Device], weights_mb: int, kv_cache_mb: int, ratio: float
) -> None:
    assert claim_ratio(devices, weights_mb, kv_cache_mb) == ratio
