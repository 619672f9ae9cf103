# SPDX-License-Identifier: GPL-3.0-or-later
"""Against the driver of this machine, whichever it is: none, a broken one, or one with GPUs."""

from neuron.nvml import Nvml


def test_no_driver_is_an_answer_and_a_driver_tells_its_devices() -> None:
    nvml = Nvml()
    driver = nvml.driver()
    readings = nvml.read()
    nvml.close()
    assert len(readings) == len(driver.devices)
    if driver.driver_version is None:
        assert driver.devices == []
    else:
        assert driver.unavailable_reason is None
        assert driver.cuda_version is not None
        assert len(driver.cuda_version.split(".")) == 2
    for device, (health, _) in zip(driver.devices, readings, strict=True):
        assert device.index == health.index
        assert device.vram_total_mb > 0
        assert 0 <= (health.vram_used_mb or 0) <= device.vram_total_mb


def test_closing_twice_is_harmless() -> None:
    nvml = Nvml()
    nvml.driver()
    nvml.close()
    nvml.close()
    assert nvml.read() == []
