# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from cortex_core.discovery import Device
from neuron.discovery import Driver, Machine, choose_platform, cpu_health, describe

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
