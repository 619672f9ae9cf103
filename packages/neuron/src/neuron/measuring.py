# SPDX-License-Identifier: GPL-3.0-or-later
"""What devices and memory do now: read in the background, kept, and handed out at once."""

import asyncio
from collections.abc import Iterable

import msgspec

from cortex_core import logs
from cortex_core.discovery import Device
from cortex_core.node import DeviceHealth
from neuron import machine
from neuron.discovery import CPU_UUID, GpuReading, Gpus, cpu_health
from neuron.residents import Residents

log = logs.get(__name__)

INTERVAL_S = 2.0


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What was read at one moment. `ram_mb` is by process group."""

    gpus: list[GpuReading] = []
    host_ram_free_mb: int | None = None
    ram_mb: dict[int, int] = {}


class Measuring:
    """Owner of the last measurement."""

    def __init__(
        self,
        gpus: Gpus,
        devices: list[Device],
        residents: Residents,
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._interval_s = interval_s
        self._gpus = gpus
        self._devices = devices
        self._residents = residents
        self._last = Measurement(host_ram_free_mb=machine.ram_free_mb())

    @property
    def host_ram_free_mb(self) -> int | None:
        """MiB of host memory that is free, as last read."""
        return self._last.host_ram_free_mb

    def devices(self) -> list[DeviceHealth]:
        """Each device, as last read."""
        residents = self._residents.all()
        cpus = [
            cpu_health(d, [r.claims_mb.get(d.index, 0) for r in residents])
            for d in self._devices
            if d.uuid == CPU_UUID
        ]
        return cpus or [reading.health for reading in self._last.gpus]

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            try:
                await self.measure()
            except Exception:  # a reading that fails must not end the readings
                log.exception("measuring failed")
            await asyncio.sleep(self._interval_s)

    async def measure(self) -> None:
        """Measure once, in a thread: the driver may take its time."""
        groups = {r.pid for r in self._residents.all() if r.pid is not None}
        self._last = await asyncio.to_thread(self._read, groups)
        self._note_models(self._last)

    def _read(self, groups: set[int]) -> Measurement:
        return Measurement(
            gpus=self._gpus.read(),
            host_ram_free_mb=machine.ram_free_mb(),
            ram_mb=machine.groups_ram_mb(groups) if groups else {},
        )

    def _note_models(self, measurement: Measurement) -> None:
        vram_mb = vram_by_group(reading.processes for reading in measurement.gpus)
        for resident in self._residents.all():
            if resident.pid is not None:
                self._residents.note_memory(
                    resident.id,
                    vram_mb=vram_mb.get(resident.pid),
                    host_ram_mb=measurement.ram_mb.get(resident.pid),
                )


def vram_by_group(processes: Iterable[dict[int, int]]) -> dict[int, int]:
    """MiB of GPU memory by process group, over all GPUs."""
    used: dict[int, int] = {}
    for by_pid in processes:
        for pid, used_mb in by_pid.items():
            group = machine.group_of(pid)
            used[group] = used.get(group, 0) + used_mb
    return used
