# SPDX-License-Identifier: GPL-3.0-or-later
"""What does the NVIDIA driver say? The only importer of pynvml.

No driver is an answer. A driver that is there and fails gives its reason. A figure that one GPU does not have
is None, and spoils no other.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from cortex_core import logs
from cortex_core.discovery import Device
from cortex_core.node import DeviceHealth
from neuron.discovery import Driver, GpuReading

log = logs.get(__name__)

T = TypeVar("T")

MIB = 1024 * 1024
MILLIWATTS = 1000


class Nvml:
    """The driver of this machine."""

    def __init__(self) -> None:
        self._handles: list[tuple[int, Any]] = []
        self._begun = False

    def driver(self) -> Driver:
        """Begin to ask the driver, and say what is there."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                return Driver()
            return Driver(unavailable_reason=f"the NVIDIA driver does not work: {error}")
        self._begun = True
        try:
            return self._driver()
        except pynvml.NVMLError as error:
            return Driver(unavailable_reason=f"the NVIDIA driver cannot list its GPUs: {error}")

    def _driver(self) -> Driver:
        count = pynvml.nvmlDeviceGetCount()
        self._handles = [(i, pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count)]
        return Driver(
            driver_version=_ask(pynvml.nvmlSystemGetDriverVersion),
            cuda_version=_ask(_cuda_version),
            devices=[_device(index, handle) for index, handle in self._handles],
        )

    def read(self) -> list[GpuReading]:
        """What each GPU does now."""
        return [GpuReading(_health(i, handle), _processes(handle)) for i, handle in self._handles]

    def close(self) -> None:
        """Let the driver go."""
        if self._begun:
            self._begun = False
            self._handles = []
            _ask(pynvml.nvmlShutdown)


def _ask(question: Callable[..., T], *args: Any) -> T | None:
    try:
        return question(*args)
    except pynvml.NVMLError as error:
        log.debug("driver does not tell", kind=getattr(question, "__name__", ""), reason=str(error))
        return None


def _cuda_version() -> str:
    # 13020 is 13.2: thousands and tens.
    number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    return f"{number // 1000}.{number % 1000 // 10}"


def _device(index: int, handle: Any) -> Device:
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    capability = _ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Device(
        index=index,
        uuid=_ask(pynvml.nvmlDeviceGetUUID, handle) or f"unknown-{index}",
        name=_ask(pynvml.nvmlDeviceGetName, handle) or "unknown",
        vram_total_mb=memory.total // MIB if memory else 0,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
    )


def _health(index: int, handle: Any) -> DeviceHealth:
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    temperature = _ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    return DeviceHealth(
        index=index,
        vram_used_mb=memory.used // MIB if memory else None,
        vram_free_mb=memory.free // MIB if memory else None,
        utilization_pct=None if rates is None else float(rates.gpu),
        temp_c=None if temperature is None else float(temperature),
        power_w=None if power is None else power / MILLIWATTS,
    )


def _processes(handle: Any) -> dict[int, int]:
    found = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    return {
        process.pid: process.usedGpuMemory // MIB
        for process in found
        if process.usedGpuMemory is not None
    }
