# SPDX-License-Identifier: GPL-3.0-or-later
"""What does the NVIDIA driver say? The only importer of pynvml.

No driver is an answer. A driver that is there and fails gives its reason. A figure that one GPU does not have
is None, and spoils no other; a GPU that has gone spoils no other either.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pynvml

from cortex_core import logs
from cortex_core.discovery import Device
from cortex_core.node import DeviceHealth
from neuron.discovery import (
    Driver,
    GpuReading,
    Listed,
    choose_visible,
    mig_index,
    mismatch_reason,
)
from neuron.machine import nvidia_kernel_module

log = logs.get(__name__)

T = TypeVar("T")

MIB = 1024 * 1024
MILLIWATTS = 1000


VISIBLE = "CUDA_VISIBLE_DEVICES"
# The GPU fell off the bus, or needs a reset. Any question about it gives one of these.
LOST = frozenset(
    {
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
    }
)


class Nvml:
    """The driver of this machine, as far as CUDA_VISIBLE_DEVICES lets this process see it."""

    def __init__(self) -> None:
        self._handles: list[tuple[int, Any]] = []

    def driver(self) -> Driver:
        """Begin to ask the driver, and say what is there."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            return _unusable(error)
        try:
            return self._driver()
        except pynvml.NVMLError as error:
            return Driver(unavailable_reason=f"the NVIDIA driver cannot list its GPUs: {error}")

    def _driver(self) -> Driver:
        found = list(_list_devices())
        variable = os.environ.get(VISIBLE)
        visible, unknown = choose_visible([listed for listed, _ in found], variable)
        chosen = {listed.device.uuid for listed in visible}
        self._handles = [
            (listed.device.index, handle)
            for listed, handle in found
            if listed.device.uuid in chosen
        ]
        reason = None
        if unknown is not None and unknown != "-1" and found:
            known = ", ".join(f"{each.device.index} ({each.device.uuid})" for each, _ in found)
            reason = f"{VISIBLE} has '{unknown}', which names none of {known}"
            log.warning("device is not there", variable=VISIBLE, reason=reason)
        return Driver(
            driver_version=_ask(pynvml.nvmlSystemGetDriverVersion),
            cuda_version=_ask(_cuda_version),
            unavailable_reason=None if visible else reason,
            devices=[each.device for each in visible],
        )

    def read(self) -> list[GpuReading]:
        """What each GPU does now."""
        return [_read(index, handle) for index, handle in self._handles]


def _unusable(error: Any) -> Driver:
    if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return Driver()
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        # It tells its own version, whether it could begin or not: that of CUDA, then that of the driver.
        library = _ask(pynvml.nvmlSystemGetNVMLVersion)
        version = library.partition(".")[2] if library else None
        return Driver(unavailable_reason=mismatch_reason(version, nvidia_kernel_module()))
    return Driver(unavailable_reason=f"the NVIDIA driver does not work: {error}")


def _list_devices() -> Iterator[tuple[Listed, Any]]:
    """Each GPU with its handle; of one in MIG mode its instances instead, since it can be used by no other way."""
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpu = _device(index, handle)
            in_mig_mode = _is_in_mig_mode(handle)
            devices = list(_mig_instances(index, handle)) if in_mig_mode else [(gpu, handle)]
        except pynvml.NVMLError as error:
            log.warning("GPU cannot be used", devices=[index], reason=str(error))
            continue
        for device, own in devices:
            yield Listed(device, index, gpu.uuid), own


def _is_in_mig_mode(handle: Any) -> bool:
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    return mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def _mig_instances(gpu_index: int, handle: Any) -> Iterator[tuple[Device, Any]]:
    for slot in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            own = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
        except pynvml.NVMLError_NotFound:
            continue
        yield _device(mig_index(gpu_index, slot), own), own


def _ask(question: Callable[..., T], *args: Any) -> T | None:
    """The answer; None: it has none.

    Raises:
        pynvml.NVMLError: one of LOST.
    """
    try:
        return question(*args)
    except pynvml.NVMLError as error:
        if error.value in LOST:
            raise
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


def _read(index: int, handle: Any) -> GpuReading:
    try:
        return GpuReading(_health(index, handle), _processes(handle))
    except pynvml.NVMLError:
        return GpuReading(DeviceHealth(index=index), {}, is_lost=True)


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
    # The third version by its name: without one, a driver too old for it is an error of another kind.
    found = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle) or []
    return {
        process.pid: process.usedGpuMemory // MIB
        for process in found
        if process.usedGpuMemory is not None
    }
