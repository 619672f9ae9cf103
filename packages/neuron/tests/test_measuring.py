# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import os

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.node import DeviceHealth
from neuron.discovery import GpuReading
from neuron.host.messages import Ready
from neuron.measuring import Measuring, vram_by_group
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


def test_memory_of_processes_that_have_gone_is_nobody_s() -> None:
    assert vram_by_group([{os.getpid(): 5}, {os.getpid(): 6}]) == {os.getpgrp(): 11}
