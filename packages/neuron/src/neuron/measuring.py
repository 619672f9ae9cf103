# SPDX-License-Identifier: GPL-3.0-or-later
"""What devices and memory do now: read in the background, kept, and handed out at once."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import msgspec

from cortex_core import logs
from cortex_core.discovery import Device
from cortex_core.node import DeviceHealth, ModelStatus
from neuron import machine
from neuron.apart import ask_apart
from neuron.discovery import CPU_UUID, GpuReading, Gpus, cpu_health
from neuron.residents import Residents
from neuron.room import RISING, Room, rooms

log = logs.get(__name__)

INTERVAL_S = 2.0
# What a process holds of host memory is counted page by page by the kernel, which holds the process up meanwhile.
RAM_INTERVAL_S = 60.0
# A driver that answers takes milliseconds; one whose GPU hangs may never do.
LONGEST_S = 10.0


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What was read at one moment. `ram_mb` is by process group; `rising` were on their way up when it began."""

    gpus: list[GpuReading] = []
    host_ram_free_mb: int | None = None
    ram_mb: dict[int, int] = {}
    rising: frozenset[str] = frozenset()


class Measuring:
    """Owner of the last measurement."""

    def __init__(
        self,
        gpus: Gpus,
        devices: list[Device],
        residents: Residents,
        *,
        interval_s: float = INTERVAL_S,
        longest_s: float = LONGEST_S,
        read_ram_mb: Callable[[set[int]], dict[int, int]] = machine.groups_ram_mb,
    ) -> None:
        self._interval_s = interval_s
        self._longest_s = longest_s
        self._read_ram_mb = read_ram_mb
        # When host memory was read last, and of which engines in which state.
        self._ram_read_s = -math.inf
        self._ram_stages: frozenset[tuple[int | None, ModelStatus]] = frozenset()
        # One that may not have come back; no other is begun meanwhile, or there would be ever more threads.
        self._asking: asyncio.Future[Measurement] | None = None
        self._is_silent = False
        self._gpus = gpus
        self._devices = devices
        self._residents = residents
        self._last = Measurement(host_ram_free_mb=machine.ram_free_mb())
        # MiB of each device that each model's processes had, where the driver tells.
        self._used_mb: dict[str, dict[int, int]] = {}
        # Readings do not overtake each other, and who waits for one gets one that began after he asked.
        self._reading = asyncio.Lock()

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

    def rooms(self, without: str | None = None) -> list[Room]:
        """What each device can still give, by the last reading and by what is promised now.

        Args:
            without: a model whose own claim does not count: room is sought for it.
        """
        return rooms(
            self._devices,
            self.devices(),
            self._residents.all(),
            used_mb=self._used_mb,
            unsettled=self._last.rising,
            lost=_lost(self._last.gpus),
            without=without,
        )

    def used_mb(self, model_id: str) -> Mapping[int, int]:
        """MiB of each device that a model's processes had at the last reading; empty: the driver does not tell."""
        return self._used_mb.get(model_id, {})

    def lacking_mb(self, model_id: str, claims_mb: Mapping[int, int]) -> dict[int, int]:
        """MiB that are missing of each device for a model to have all of its claims; empty: nothing is."""
        used_mb = self.used_mb(model_id)
        free_mb = {room.device.index: room.free_mb for room in self.rooms(without=model_id)}
        missing = {
            index: claim_mb - used_mb.get(index, 0) - free
            for index, claim_mb in claims_mb.items()
            if (free := free_mb.get(index)) is not None
        }
        return {index: short_mb for index, short_mb in missing.items() if short_mb > 0}

    async def free_mb(self) -> dict[int, int]:
        """MiB that are free on each device now; without those whose driver does not tell."""
        await self.measure()
        return {d.index: d.vram_free_mb for d in self.devices() if d.vram_free_mb is not None}

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            try:
                await self.measure()
            except Exception:  # a reading that fails must not end the readings
                log.exception("measuring failed")
            await asyncio.sleep(self._interval_s)

    async def measure(self) -> None:
        """Measure once, in a thread of its own: the driver may take its time.

        After `longest_s` the last measurement stands, and nobody waits any more until the driver has answered.
        """
        async with self._reading:
            residents = self._residents.all()
            groups = {r.pid for r in residents if r.pid is not None}
            rising = frozenset(r.id for r in residents if r.status in RISING)
            last = await self._ask(groups if self._is_ram_due() else None, rising)
            if last is None:
                return
            _log_changes(self._last.gpus, last.gpus)
            self._last = msgspec.structs.replace(last, gpus=settle(self._last.gpus, last.gpus))
            self._note_models(self._last)

    def _is_ram_due(self) -> bool:
        """Whether host memory is to be read: seldom, and whenever an engine has come, changed its state, or gone."""
        stages = frozenset((r.pid, r.status) for r in self._residents.all())
        now_s = time.monotonic()
        if stages == self._ram_stages and now_s - self._ram_read_s < RAM_INTERVAL_S:
            return False
        self._ram_stages, self._ram_read_s = stages, now_s
        return True

    async def _ask(self, groups: set[int] | None, rising: frozenset[str]) -> Measurement | None:
        """One that begins now; None: the driver does not answer. `groups` None: their host memory is as it was."""
        if self._asking is not None and not await self._answers(self._asking):
            return None
        asking = ask_apart(partial(self._read, groups, rising))
        # Whoever waited for it may have gone by the time that it fails.
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._asking = asking
        if not await self._answers(asking):
            return None
        self._asking = None
        return asking.result()

    async def _answers(self, asking: asyncio.Future[Measurement]) -> bool:
        # Loads and wakes measure: one that is known to hang must not hold up each of them.
        await asyncio.wait({asking}, timeout=0 if self._is_silent else self._longest_s)
        if self._is_silent == asking.done():
            self._is_silent = not asking.done()
            if self._is_silent:
                log.error("driver does not answer", waited_s=self._longest_s)
            else:
                log.info("driver answers again")
        return asking.done()

    def _read(self, groups: set[int] | None, rising: frozenset[str]) -> Measurement:
        return Measurement(
            gpus=self._gpus.read(),
            host_ram_free_mb=machine.ram_free_mb(),
            ram_mb=self._last.ram_mb if groups is None else self._read_ram_mb(groups),
            rising=rising,
        )

    def _note_models(self, measurement: Measurement) -> None:
        by_group = vram_by_group(measurement.gpus)
        residents = [r for r in self._residents.all() if r.pid is not None]
        self._used_mb = {r.id: by_group[r.pid] for r in residents if r.pid in by_group}
        for resident in residents:
            used_mb = self.used_mb(resident.id)
            ram_mb = measurement.ram_mb.get(resident.pid or 0)
            vram_mb = sum(used_mb.values()) if used_mb else None
            self._residents.note_memory(resident.id, vram_mb=vram_mb, host_ram_mb=ram_mb)
            if resident.status is ModelStatus.LOADED and resident.id not in measurement.rising:
                # A device that does not tell for once must not look like one that it does not need.
                told_mb = used_mb if used_mb.keys() == set(resident.devices) else {}
                self._residents.costs.note_memory(resident.spec, told_mb, ram_mb)


def settle(before: list[GpuReading], now: list[GpuReading]) -> list[GpuReading]:
    """The readings, where a GPU did not tell its memory for once with what it told last.

    Nothing used of nothing free is no answer either. A GPU that is lost has no memory, and says so.
    """
    last = {reading.health.index: reading.health for reading in before if not reading.is_lost}
    return [_settled(last.get(reading.health.index), reading) for reading in now]


def _settled(before: DeviceHealth | None, now: GpuReading) -> GpuReading:
    health = now.health
    if before is None or now.is_lost or health.vram_used_mb or health.vram_free_mb:
        return now
    kept = msgspec.structs.replace(
        health, vram_used_mb=before.vram_used_mb, vram_free_mb=before.vram_free_mb
    )
    return now._replace(health=kept)


def _lost(readings: Iterable[GpuReading]) -> set[int]:
    return {reading.health.index for reading in readings if reading.is_lost}


def _log_changes(before: list[GpuReading], now: list[GpuReading]) -> None:
    if gone := _lost(now) - _lost(before):
        log.error("GPU lost", devices=sorted(gone))
    if back := _lost(before) - _lost(now):
        log.info("GPU back", devices=sorted(back))


def vram_by_group(readings: Iterable[GpuReading]) -> dict[int, dict[int, int]]:
    """MiB of GPU memory by process group and device."""
    used: dict[int, dict[int, int]] = {}
    for reading in readings:
        for pid, used_mb in reading.processes.items():
            by_device = used.setdefault(machine.group_of(pid), {})
            index = reading.health.index
            by_device[index] = by_device.get(index, 0) + used_mb
    return used
