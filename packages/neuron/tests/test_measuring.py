# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import os
import threading
import time

import pytest

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.node import DeviceHealth
from neuron.discovery import GpuReading
from neuron.host.messages import Ready
from neuron.measuring import Measuring, settle, vram_by_group
from neuron.residents import Residents
from neuron.testing import FakeGpus, make_gpu


def resident(pid: int | None = None, claim_mb: int = 0) -> Residents:
    residents = Residents()
    residents.note_load(ModelSpec(model_id="a"), 0.0)
    residents.note_place("a", [0], {0: claim_mb})
    if pid:
        residents.note_host("a", pid)
    residents.note_ready("a", Ready(), 1.0, 0)
    return residents


async def test_a_model_is_measured_by_the_processes_of_its_group() -> None:
    own = os.getpid()
    health = DeviceHealth(index=0, vram_used_mb=700, vram_free_mb=23_300)
    gpus = FakeGpus(readings=[GpuReading(health, {own: 400, 1: 300})])
    residents = resident(pid=os.getpgrp())
    measuring = Measuring(gpus, [make_gpu()], residents)
    await measuring.measure()
    assert measuring.devices() == [health]
    assert measuring.host_ram_free_mb
    (found,) = residents.all()
    assert found.vram_used_mb == 400
    assert (found.host_ram_used_mb or 0) > 10


async def test_the_cpu_tells_of_its_budget() -> None:
    cpu = Device(index=0, uuid="cpu", name="CPU", vram_total_mb=1000)
    measuring = Measuring(FakeGpus(), [cpu], resident(claim_mb=300))
    assert measuring.devices() == [DeviceHealth(index=0, vram_used_mb=300, vram_free_mb=700)]


async def test_a_reading_that_fails_does_not_end_the_readings() -> None:
    health = DeviceHealth(index=0, vram_used_mb=1)

    class Failing(FakeGpus):
        asked = 0

        def read(self) -> list[GpuReading]:
            self.asked += 1
            if self.asked == 1:
                raise RuntimeError("the driver has gone")
            return [GpuReading(health, {})]

    measuring = Measuring(Failing(), [make_gpu()], Residents(), interval_s=0.0)
    running = asyncio.create_task(measuring.run())
    async with asyncio.timeout(5):
        while measuring.devices() != [health]:
            await asyncio.sleep(0)
    running.cancel()


def test_memory_of_processes_is_told_by_group_and_device() -> None:
    own, nobody = os.getpid(), GpuReading(DeviceHealth(index=2), {})
    readings = [GpuReading(DeviceHealth(index=i), {own: 5 + i}) for i in range(2)]
    assert vram_by_group([*readings, nobody]) == {os.getpgrp(): {0: 5, 1: 6}}


def reading(used_mb: int | None, free_mb: int | None, *, is_lost: bool = False) -> GpuReading:
    health = DeviceHealth(index=0, vram_used_mb=used_mb, vram_free_mb=free_mb, temp_c=40.0)
    return GpuReading(health, {}, is_lost)


@pytest.mark.parametrize(
    ("before", "now", "settled"),
    [
        (None, reading(None, None), reading(None, None)),
        (reading(5, 6), reading(7, 8), reading(7, 8)),
        (reading(5, 6), reading(0, 11), reading(0, 11)),
        (reading(5, 6), reading(None, None), reading(5, 6)),
        (reading(5, 6), reading(0, 0), reading(5, 6)),
        (reading(5, 6), reading(None, None, is_lost=True), reading(None, None, is_lost=True)),
        (reading(None, None, is_lost=True), reading(7, 8), reading(7, 8)),
    ],
)
def test_a_gpu_that_does_not_tell_for_once_keeps_what_it_told(
    before: GpuReading | None, now: GpuReading, settled: GpuReading
) -> None:
    assert settle([before] if before else [], [now]) == [settled]


async def test_what_a_model_takes_is_remembered_while_it_serves() -> None:
    health = DeviceHealth(index=0, vram_used_mb=700, vram_free_mb=23_300)
    gpus = FakeGpus(readings=[GpuReading(health, {os.getpid(): 400})])
    residents = resident(pid=os.getpgrp())
    measuring = Measuring(gpus, [make_gpu()], residents)
    await measuring.measure()
    assert measuring.used_mb("a") == {0: 400}
    assert residents.costs.find("a").vram_mb == {0: 400}
    assert (residents.costs.find("a").host_ram_mb or 0) > 10


async def test_host_memory_is_read_when_an_engine_changes_and_not_each_time() -> None:
    asked: list[set[int]] = []

    def read_ram_mb(groups: set[int]) -> dict[int, int]:
        asked.append(groups)
        return dict.fromkeys(groups, 100 * len(asked))

    residents = Residents()
    residents.note_load(ModelSpec(model_id="a"), 0.0)
    measuring = Measuring(FakeGpus(), [make_gpu()], residents, read_ram_mb=read_ram_mb)
    await measuring.measure()
    residents.note_host("a", 7)
    for _ in range(3):
        await measuring.measure()
    assert asked == [set(), {7}]
    residents.note_ready("a", Ready(), 1.0, 0)
    for _ in range(3):
        await measuring.measure()
    assert asked == [set(), {7}, {7}]
    assert residents.all()[0].host_ram_used_mb == 300


async def test_a_model_on_its_way_up_is_not_measured_for_good() -> None:
    health = DeviceHealth(index=0, vram_used_mb=700, vram_free_mb=23_300)
    gpus = FakeGpus(readings=[GpuReading(health, {os.getpid(): 400})])
    residents = Residents()
    residents.note_load(ModelSpec(model_id="a"), 0.0)
    residents.note_place("a", [0], {0: 1000})
    residents.note_host("a", os.getpgrp())
    measuring = Measuring(gpus, [make_gpu()], residents)
    await measuring.measure()
    assert residents.costs.find("a").vram_mb == {}
    (room,) = measuring.rooms()
    assert room.free_mb == 23_300 - 600
    assert measuring.rooms(without="a")[0].free_mb == 23_300
    assert measuring.lacking_mb("a", {0: 23_700}) == {}
    assert measuring.lacking_mb("a", {0: 24_000}) == {0: 300}


async def test_a_reading_that_began_before_a_model_came_up_is_not_its_measure() -> None:
    residents = Residents()
    residents.note_load(ModelSpec(model_id="a"), 0.0)
    residents.note_place("a", [0], {0: 1000})
    residents.note_host("a", os.getpgrp())

    class Slow(FakeGpus):
        def read(self) -> list[GpuReading]:
            if residents.all()[0].ready is None:
                residents.note_ready("a", Ready(), 1.0, 0)
            health = DeviceHealth(index=0, vram_used_mb=700, vram_free_mb=23_300)
            return [GpuReading(health, {os.getpid(): 400})]

    measuring = Measuring(Slow(), [make_gpu()], residents)
    await measuring.measure()
    assert residents.costs.find("a").vram_mb == {}
    assert measuring.rooms()[0].free_mb == 23_300 - 600
    await measuring.measure()
    assert residents.costs.find("a").vram_mb == {0: 400}
    assert measuring.rooms()[0].free_mb == 23_300


async def test_readings_do_not_overtake_each_other() -> None:
    class Counting(FakeGpus):
        now = most = 0

        def read(self) -> list[GpuReading]:
            self.now += 1
            self.most = max(self.most, self.now)
            threading.Event().wait(0.005)  # as a driver does, in a thread of its own
            self.now -= 1
            return []

    gpus = Counting()
    measuring = Measuring(gpus, [], Residents())
    await asyncio.gather(*(measuring.measure() for _ in range(8)))
    assert gpus.most == 1


async def test_a_driver_that_does_not_answer_holds_up_nobody() -> None:
    before, after = (DeviceHealth(index=0, vram_free_mb=mb) for mb in (5, 7))

    class Hanging(FakeGpus):
        asked = 0

        def __init__(self) -> None:
            super().__init__(readings=[GpuReading(before, {})])
            self.answers = threading.Event()

        def read(self) -> list[GpuReading]:
            self.asked += 1
            self.answers.wait(30)
            return self.readings

    gpus = Hanging()
    measuring = Measuring(gpus, [make_gpu()], Residents(), longest_s=0.1)
    gpus.answers.set()
    await measuring.measure()
    gpus.answers.clear()
    began_s = time.monotonic()
    for _ in range(50):
        assert await measuring.free_mb() == {0: 5}  # as last read
    assert time.monotonic() - began_s < 1, "only the first waits for it"
    assert gpus.asked == 2
    gpus.readings = [GpuReading(after, {})]
    gpus.answers.set()
    async with asyncio.timeout(5):
        while await measuring.free_mb() != {0: 7}:
            pass
