# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from cortex_core.discovery import Device
from neuron.discovery import (
    Driver,
    Listed,
    Machine,
    choose_platform,
    choose_visible,
    cpu_health,
    describe,
    is_mig,
    mig_index,
    mismatch_reason,
)

MACHINE = Machine(hostname="h", os="Linux", kernel="6", cpu_name="Fast CPU", host_ram_mb=64_000)
GPU = Device(index=0, uuid="GPU-0", name="G", vram_total_mb=24_000, compute_capability="8.9")
WORKING = Driver(driver_version="580", cuda_version="13.0", devices=[GPU])
BROKEN = Driver(unavailable_reason="driver/library version mismatch")
CPU = Device(index=0, uuid="cpu", name="Fast CPU", vram_total_mb=4096)


@pytest.mark.parametrize(
    ("setting", "driver", "platform"),
    [
        (None, Driver(), "cpu"),
        (None, WORKING, "cuda"),
        (None, BROKEN, "cuda"),
        ("cpu", WORKING, "cpu"),
        ("cuda", Driver(), "cuda"),
    ],
)
def test_gpus_are_used_where_a_driver_is_unless_told_otherwise(
    setting: str | None, driver: Driver, platform: str
) -> None:
    assert choose_platform(setting, driver) == platform


@pytest.mark.parametrize(
    ("driver", "platform", "harnesses", "devices"),
    [
        (Driver(), "cpu", ["vllm"], [CPU]),
        (Driver(), "cpu", ["echo"], []),
        (WORKING, "cuda", ["vllm"], [GPU]),
        (WORKING, "cpu", ["vllm"], [CPU]),
        (BROKEN, "cuda", ["vllm"], []),
    ],
)
def test_the_devices_are_those_that_models_run_on(
    driver: Driver, platform: str, harnesses: list[str], devices: list[Device]
) -> None:
    found = describe(
        MACHINE,
        driver,
        platform=platform,
        harnesses=harnesses,
        cpu_budget_mb=4096,
        version="1",
    )
    assert found.devices == devices
    assert found.cuda_unavailable_reason == driver.unavailable_reason
    assert (found.hostname, found.harnesses, found.driver_version) == (
        "h",
        harnesses,
        driver.driver_version,
    )


@pytest.mark.parametrize(
    ("claims_mb", "used_mb", "free_mb"),
    [([], 0, 4096), ([96, 1000], 1096, 3000), ([5000], 5000, 0)],
)
def test_the_cpu_is_used_by_what_its_models_were_given(
    claims_mb: list[int], used_mb: int, free_mb: int
) -> None:
    health = cpu_health(CPU, claims_mb)
    assert (health.index, health.vram_used_mb, health.vram_free_mb) == (0, used_mb, free_mb)


def listed(index: int, uuid: str, gpu_index: int, gpu_uuid: str) -> Listed:
    return Listed(Device(index=index, uuid=uuid, name="G", vram_total_mb=1), gpu_index, gpu_uuid)


ALL = [
    listed(0, "GPU-aa", 0, "GPU-aa"),
    listed(1, "GPU-ab", 1, "GPU-ab"),
    listed(mig_index(2, 0), "MIG-one", 2, "GPU-c"),
    listed(mig_index(2, 3), "MIG-two", 2, "GPU-c"),
]


@pytest.mark.parametrize(
    ("variable", "indices", "unknown"),
    [
        (None, [0, 1, 120, 123], None),
        ("", [], None),
        (" ", [], None),
        ("1", [1], None),
        ("1,0", [0, 1], None),
        (" GPU-ab , 0", [0, 1], None),
        ("GPU-a", [0, 1], None),
        ("2", [120, 123], None),
        ("GPU-c", [120, 123], None),
        ("MIG-two", [123], None),
        ("-1", [], "-1"),
        ("0,7,1", [0], "7"),
        ("all", [], "all"),
    ],
)
def test_the_devices_that_cuda_may_see(
    variable: str | None, indices: list[int], unknown: str | None
) -> None:
    visible, wrong = choose_visible(ALL, variable)
    assert ([each.device.index for each in visible], wrong) == (indices, unknown)


def test_mig_instances_are_told_from_gpus() -> None:
    assert [is_mig(each.device) for each in ALL] == [False, False, True, True]


def test_a_driver_of_two_versions_is_told_as_far_as_it_is_known() -> None:
    assert "version 580.95.05 and its kernel module 570.1:" in mismatch_reason("580.95.05", "570.1")
    assert "version unknown and its kernel module unknown" in mismatch_reason(None, None)
