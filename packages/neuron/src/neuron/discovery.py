# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machine offers, from what driver and kernel say of it. Pure."""

from typing import NamedTuple, Protocol

import msgspec

from cortex_core.discovery import Device, Discovery
from cortex_core.node import DeviceHealth
from cortex_core.wire import WIRE_VERSION

CPU_UUID = "cpu"
CPU_INDEX = 0


class Driver(msgspec.Struct, frozen=True, kw_only=True):
    """What the NVIDIA driver says at start. Nothing at all: there is no driver, which is an answer.

    Attributes:
        unavailable_reason: why a driver that is there cannot be used; None: nothing is wrong.
    """

    driver_version: str | None = None
    cuda_version: str | None = None
    unavailable_reason: str | None = None
    devices: list[Device] = []


class GpuReading(NamedTuple):
    """One GPU now.

    `processes`: MiB of its memory by process id; empty where the driver does not tell.
    `is_lost`: it is not there any more, and nothing is known of it.
    """

    health: DeviceHealth
    processes: dict[int, int]
    is_lost: bool = False


class Listed(NamedTuple):
    """A device of the driver's list, and the GPU that it is or, for a MIG instance, is a part of."""

    device: Device
    gpu_index: int
    gpu_uuid: str


class Gpus(Protocol):
    """Asks the driver."""

    def driver(self) -> Driver:
        """What is there. Fails for nobody: a reason is an answer."""

    def read(self) -> list[GpuReading]:
        """What each GPU does now; empty where there is none."""


def mig_index(gpu_index: int, instance: int) -> int:
    """What a MIG instance is called by number, beside the GPUs, which keep the driver's numbers."""
    return 100 + 10 * gpu_index + instance


def is_mig(device: Device) -> bool:
    """Whether it is a MIG instance. CUDA lets a process have one of these, and no more."""
    return device.uuid.startswith("MIG-")


def choose_visible(listed: list[Listed], variable: str | None) -> tuple[list[Listed], str | None]:
    """The devices that CUDA_VISIBLE_DEVICES leaves, and the first of its words that names none of them.

    As CUDA reads it: what follows an unknown word counts for nothing, and an empty variable hides all. Numbers
    are the driver's; UUIDs may be cut short. The number or UUID of a GPU in MIG mode means all its instances.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#env-vars
    """
    if variable is None:
        return listed, None
    chosen: set[str] = set()
    for word in variable.split(",") if variable.strip() else []:
        found = {each.device.uuid for each in listed if _is_named(each, word.strip())}
        if not found:
            return [each for each in listed if each.device.uuid in chosen], word.strip()
        chosen |= found
    return [each for each in listed if each.device.uuid in chosen], None


def _is_named(listed: Listed, word: str) -> bool:
    if word.isdecimal():
        return listed.gpu_index == int(word)
    if not word.startswith(("GPU-", "MIG-")):
        return False
    return listed.gpu_uuid.startswith(word) or listed.device.uuid.startswith(word)


def mismatch_reason(library: str | None, kernel_module: str | None) -> str:
    """What to tell where the driver's two halves are of different versions; None: not known which."""
    return (
        f"the NVIDIA driver's library is version {library or 'unknown'} and its kernel module "
        f"{kernel_module or 'unknown'}: it was updated, and this machine was not restarted since"
    )


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine without its GPUs. `cpu_name` is for people."""

    hostname: str
    os: str
    kernel: str
    cpu_name: str
    host_ram_mb: int


def choose_platform(setting: str | None, driver: Driver) -> str:
    """Where vLLM engines run: as set, else on GPUs where a driver is there, working or not.

    A driver that fails must be told, and not be hidden by slow answers from the CPU.
    """
    if setting:
        return setting
    return "cuda" if driver.devices or driver.unavailable_reason else "cpu"


def describe(
    machine: Machine,
    driver: Driver,
    *,
    platform: str,
    harnesses: list[str],
    cpu_budget_mb: int,
    version: str,
) -> Discovery:
    """The answer of GET /discovery."""
    devices = driver.devices
    if platform == "cpu":
        devices = [_cpu(machine, cpu_budget_mb)] if "vllm" in harnesses else []
    return Discovery(
        hostname=machine.hostname,
        os=machine.os,
        kernel=machine.kernel,
        cuda_version=driver.cuda_version,
        driver_version=driver.driver_version,
        cuda_unavailable_reason=driver.unavailable_reason,
        devices=devices,
        harnesses=harnesses,
        host_ram_mb=machine.host_ram_mb,
        version=version,
        wire=WIRE_VERSION,
    )


def _cpu(machine: Machine, budget_mb: int) -> Device:
    return Device(index=CPU_INDEX, uuid=CPU_UUID, name=machine.cpu_name, vram_total_mb=budget_mb)


def cpu_health(device: Device, claims_mb: list[int]) -> DeviceHealth:
    """The CPU device now: what its models were given of its budget."""
    used_mb = sum(claims_mb)
    free_mb = max(0, device.vram_total_mb - used_mb)
    return DeviceHealth(index=device.index, vram_used_mb=used_mb, vram_free_mb=free_mb)
