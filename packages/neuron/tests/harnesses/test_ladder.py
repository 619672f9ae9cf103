# SPDX-License-Identifier: GPL-3.0-or-later
"""Sleep and wake on real echo hosts, which sleep without having a device."""

import asyncio
import os
import signal
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from cortex_core.control import ModelSpec
from cortex_core.errors import (
    CannotSleepError,
    LoadFailedError,
    ModelNotFoundError,
    ModelRecoveringError,
    WaitTimeoutError,
)
from cortex_core.http.client import read_all
from cortex_core.node import DeviceHealth
from neuron.discovery import Driver, GpuReading
from neuron.harnesses.echo import EchoHarness
from neuron.harnesses.ladder import choose_level
from neuron.harnesses.run import Launch, Run
from neuron.testing import FakeGpus, Served, make_config, make_echo, make_gpu, serve

pytestmark = pytest.mark.slow


BUSY = "echo/m?tokens=100000&token_s=0.01"


async def begin_work(served: Served, model_id: str) -> asyncio.Task[tuple[int, Any]]:
    await served.load(model_id)
    running = asyncio.create_task(complete(served, model_id))
    await served.until("/health", lambda health: health["models"][0]["running"] == 1)
    return running


async def complete(served: Served, model_id: str) -> tuple[int, Any]:
    code, answer, _ = await served.post("/v1/completions", {"model": model_id, "prompt": "a"})
    return code, answer


async def test_a_model_sleeps_and_wakes_in_the_same_process(served: Served) -> None:
    await served.load("echo/m")
    pids = served.host_pids
    code, answer, _ = await served.post("/models/sleep", {"model_id": "echo/m"})
    assert (code, answer) == (200, {"status": "sleeping", "model_id": "echo/m"})
    code, refused = await complete(served, "echo/m")
    assert (code, refused["error"]["code"]) == (503, "model_loading")
    code, answer, _ = await served.post("/models/wake", {"model_id": "echo/m"})
    assert (code, answer) == (200, {"status": "loaded", "model_id": "echo/m"})
    assert (await complete(served, "echo/m"))[0] == 200
    assert served.host_pids == pids


async def test_sleeping_twice_and_waking_twice_are_no_faults(served: Served) -> None:
    await served.load("echo/m")
    for path, done in [("/models/sleep", "sleeping"), ("/models/wake", "loaded")]:
        await served.post(path, {"model_id": "echo/m"})
        code, answer, _ = await served.post(path, {"model_id": "echo/m"})
        assert (code, answer["status"], answer["already"]) == (200, done, True)


async def test_a_load_of_a_sleeping_model_wakes_it_once_however_many_ask(served: Served) -> None:
    spec = make_echo("echo/m?wake_s=0.2")
    await served.load(spec.model_id)
    pids = served.host_pids
    assert await served.echo.sleep(spec.model_id)
    states = await asyncio.gather(*(served.echo.load(spec) for _ in range(20)))
    assert {state.status for state in states} == {"loaded"}
    assert served.host_pids == pids


async def test_without_waiting_a_load_of_a_sleeping_model_only_begins(served: Served) -> None:
    spec = make_echo("echo/m?wake_s=0.2")
    await served.load(spec.model_id)
    await served.echo.sleep(spec.model_id)
    assert (await served.echo.load(spec, wait=False)).status == "sleeping"
    await served.until_status(spec.model_id, "loaded")


async def test_a_model_woken_while_it_falls_asleep_serves_in_the_end(served: Served) -> None:
    model_id = "echo/m?sleep_s=0.2"
    await served.load(model_id)
    sleeping = asyncio.create_task(served.echo.sleep(model_id))
    await served.until_status(model_id, "sleeping")
    assert (await served.echo.load(make_echo(model_id))).status == "loaded"
    assert await sleeping
    assert (await complete(served, model_id))[0] == 200


async def test_running_work_keeps_a_model_awake(served: Served) -> None:
    model_id = "echo/m?tokens=100000&token_s=0.01"
    await served.load(model_id)
    running = asyncio.create_task(complete(served, model_id))
    await served.until("/health", lambda health: health["models"][0]["running"] == 1)
    with pytest.raises(WaitTimeoutError, match="its requests to end"):
        await served.echo.sleep(model_id)
    assert served.status(model_id) == "loaded"
    assert not running.done()
    code, answer, _ = await served.post("/models/sleep", {"model_id": model_id, "force": True})
    assert (code, answer["status"]) == (200, "unloaded")
    assert (await running)[0] == 502


async def test_who_forces_a_sleep_does_not_wait_for_one_that_is_patient() -> None:
    async with serve(make_config(drain_s=30)) as served:
        running = await begin_work(served, BUSY)
        patient = asyncio.create_task(served.echo.sleep(BUSY))
        await served.until_status(BUSY, "sleeping")
        async with asyncio.timeout(5):
            assert await served.echo.sleep(BUSY, force=True)
        assert served.daemon.residents.all() == []
        assert await patient
        assert (await running)[0] == 502


async def test_an_engine_lost_before_it_slept_comes_back_like_any_other() -> None:
    async with serve(make_config(drain_s=30)) as served:
        running = await begin_work(served, BUSY)
        falling = asyncio.create_task(served.echo.sleep(BUSY))
        await served.until_status(BUSY, "sleeping")
        os.kill(served.host_pids[0], signal.SIGKILL)
        with pytest.raises(ModelRecoveringError):
            await falling
        await served.until_status(BUSY, "loaded")
        assert (await running)[0] == 502


async def test_what_does_not_fall_asleep_is_unloaded(served: Served) -> None:
    await served.load("echo/m?fail=sleep")
    code, answer, _ = await served.post("/models/sleep", {"model_id": "echo/m?fail=sleep"})
    assert (code, answer["status"]) == (200, "unloaded")
    assert served.daemon.residents.all() == []


async def test_what_does_not_wake_is_started_anew(served: Served) -> None:
    model_id = "echo/m?fail=wake"
    await served.load(model_id)
    (pid,) = served.host_pids
    await served.echo.sleep(model_id)
    assert await served.echo.wake(model_id)
    assert served.status(model_id) == "loaded"
    assert served.host_pids != [pid]
    resident = served.daemon.residents.get(model_id)
    assert resident is not None
    assert resident.failure is not None
    assert resident.failure.kind == "wake_failed"


async def test_a_wake_that_hangs_is_noticed_by_what_the_last_one_took(served: Served) -> None:
    await served.load("echo/m")
    served.echo._ladder._move_least_s = 0.3
    await served.echo.sleep("echo/m")
    await served.echo.wake("echo/m")
    await served.echo.sleep("echo/m")
    (pid,) = served.host_pids
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(5):
        assert await served.echo.wake("echo/m")
    resident = served.daemon.residents.get("echo/m")
    assert resident is not None
    assert resident.failure is not None
    assert resident.failure.reason == "it did not wake: its engine took longer than 0.3 s"


@pytest.mark.parametrize(
    ("level", "last_s", "within_s"),
    [(1, None, 300), (1, 0.5, 30), (1, 8, 80), (1, 90, 300), (2, 0.5, 300)],
)
async def test_a_move_may_take_a_multiple_of_what_it_took_last(
    served: Served, level: int, last_s: float | None, within_s: float
) -> None:
    run = Run(make_echo("echo/m"))
    run.sleep_level = level
    assert served.echo._ladder._within_s(run, last_s) == within_s


@pytest.mark.parametrize(
    ("weights_mb", "free_mb", "level"),
    [(0, None, 1), (0, 2048, 1), (0, 2047, 2), (7000, 9048, 1), (7000, 9047, 2), (7000, -1, 2)],
)
def test_who_has_no_room_in_the_host_s_memory_sleeps_deeper(
    weights_mb: int, free_mb: int | None, level: int
) -> None:
    assert choose_level(weights_mb, free_mb) == level


class Weighty(EchoHarness):
    """Models with weights for more than half of the host's free memory, as vLLM's have."""

    async def plan_launch(self, spec: ModelSpec) -> Launch:
        free_mb = self._shared.measuring.host_ram_free_mb
        assert free_mb is not None
        launch = await super().plan_launch(spec)
        return msgspec.structs.replace(launch, weights_mb=free_mb * 6 // 10)


async def test_two_that_fall_asleep_at_once_do_not_count_on_the_same_memory() -> None:
    async with serve(make_config()) as served:
        harness = Weighty(make_config(), served.echo._shared)
        models = ("echo/a?sleep_s=0.5", "echo/b?sleep_s=0.5")
        for model_id in models:
            await harness.load(make_echo(model_id))
        await asyncio.gather(*(harness.sleep(model_id) for model_id in models))
        levels = [harness._shared.runs[model_id].sleep_level for model_id in models]
        assert sorted(levels) == [1, 2]
        await harness.wake(models[0])
        await harness.sleep(models[0])
        assert harness._shared.runs[models[0]].sleep_level == 1, "nothing is on its way now"


async def test_counting_does_not_hold_up_a_sleep() -> None:
    async with serve(make_config(drain_s=30)) as served:
        await served.load("echo/m")
        link = served.echo._shared.traffic.find("echo/m")
        assert link is not None
        async with link.place("echo/m", generates=False):  # one count or another, all the time
            async with asyncio.timeout(5):
                assert await served.echo.sleep("echo/m")
            assert served.status("echo/m") == "sleeping"
            async with link.place("echo/m", generates=False):
                pass


async def test_a_sleep_that_frees_too_little_is_no_sleep() -> None:
    reading = GpuReading(DeviceHealth(index=0, vram_used_mb=1, vram_free_mb=23_999), {})
    async with serve(make_config(), FakeGpus(Driver(devices=[make_gpu()]), [reading])) as served:
        harness = OnOneDevice(make_config(), served.echo._shared)
        await harness.load(make_echo("echo/a"))
        with capture_logs() as lines:
            code, answer, _ = await served.post("/models/sleep", {"model_id": "echo/a"})
        assert (code, answer["status"]) == (200, "unloaded")
        told = [line["reason"] for line in lines if line["event"] == "model did not sleep"]
        assert told == ["device 0 has 0 MiB more free, and 100 MiB were claimed"]
        async with served.client.open("GET", "/metrics") as reply:
            assert b"neuron_memory_leaks_total 1.0" in await read_all(reply)


async def test_a_sleeper_can_be_unloaded(served: Served) -> None:
    await served.load("echo/m")
    await served.echo.sleep("echo/m")
    assert await served.echo.unload("echo/m")
    assert served.daemon.residents.all() == []


async def test_a_model_unloaded_while_it_wakes_tells_who_waits(served: Served) -> None:
    spec = make_echo("echo/m?wake_s=30")
    await served.load(spec.model_id)
    await served.echo.sleep(spec.model_id)
    waking = asyncio.create_task(served.echo.load(spec))
    await served.until_status(spec.model_id, "loading")
    assert await served.echo.unload(spec.model_id)
    with pytest.raises(LoadFailedError, match="it was unloaded while it was loading"):
        await waking


async def test_what_is_not_here_neither_sleeps_nor_wakes(served: Served) -> None:
    for path in ("/models/sleep", "/models/wake"):
        code, answer, _ = await served.post(path, {"model_id": "echo/none"})
        assert (code, answer["error"]["code"]) == (404, "model_not_found")
    with pytest.raises(ModelNotFoundError):
        await served.echo.sleep("echo/none")


class OnOneDevice(EchoHarness):
    """Echo engines on a device that they share."""

    async def plan_launch(self, spec: ModelSpec) -> Launch:
        launch = await super().plan_launch(spec)
        return msgspec.structs.replace(launch, devices=[0], claims_mb={0: 100})


async def keep_few_asleep(harness: OnOneDevice) -> None:
    """As when the time of all who sleep now has come."""
    await harness._ladder._keep_few_asleep([r.id for r in harness._residents.all()])


async def test_too_many_sleepers_on_a_device_and_the_oldest_goes(served: Served) -> None:
    harness = OnOneDevice(make_config(), served.echo._shared)
    harness._ladder._settle_s = 0.0
    for name in "abc":
        await harness.load(make_echo(f"echo/{name}"))
    for name in "abc":
        await harness.sleep(f"echo/{name}")
    await served.until("/models", lambda models: len(models) == 2)
    assert {r.id: r.status for r in served.daemon.residents.all()} == {
        "echo/b": "sleeping",
        "echo/c": "sleeping",
    }


async def test_a_sleeper_that_another_makes_room_for_is_woken_and_not_given_up(
    served: Served,
) -> None:
    harness = OnOneDevice(make_config(), served.echo._shared)
    for name in "abc":
        await harness.load(make_echo(f"echo/{name}"))
    for name in "abc":  # a slept longest, and is what c made room for
        await harness.sleep(f"echo/{name}")
    await harness.wake("echo/a")
    await keep_few_asleep(harness)
    assert {r.id: r.status for r in served.daemon.residents.all()} == {
        "echo/a": "loaded",
        "echo/b": "sleeping",
        "echo/c": "sleeping",
    }


async def test_sleeps_that_follow_closely_do_not_put_it_off(served: Served) -> None:
    harness = OnOneDevice(make_config(), served.echo._shared)
    harness._ladder._settle_s = 0.2
    for name in "abc":
        await harness.load(make_echo(f"echo/{name}"))
        await harness.sleep(f"echo/{name}")
    async with asyncio.timeout(5):
        while len(served.daemon.residents.all()) == 3:
            harness._ladder._settle_later()  # another one has fallen asleep
            await asyncio.sleep(0.02)
    assert len(harness._ladder._settling) < 30, "those that came are forgotten"
    harness._ladder.close()


async def test_who_falls_asleep_shortly_before_costs_nobody_his_place_yet(served: Served) -> None:
    harness = OnOneDevice(make_config(), served.echo._shared)
    for name in "abc":
        await harness.load(make_echo(f"echo/{name}"))
        await harness.sleep(f"echo/{name}")
    await harness._ladder._keep_few_asleep(["echo/a", "echo/b"])  # who slept when the time began
    assert len(served.daemon.residents.all()) == 3


async def test_a_sleeper_that_looks_for_room_to_wake_is_not_given_up(served: Served) -> None:
    harness = OnOneDevice(make_config(), served.echo._shared)
    for name in "abc":
        await harness.load(make_echo(f"echo/{name}"))
        await harness.sleep(f"echo/{name}")
    waking = asyncio.create_task(harness.wake("echo/a"))
    await asyncio.sleep(0)  # its first step
    assert served.status("echo/a") == "sleeping"
    await keep_few_asleep(harness)
    assert await waking
    assert served.status("echo/a") == "loaded"
    assert len(served.daemon.residents.all()) == 3


async def test_as_many_sleepers_as_may_stay_all_stay(served: Served) -> None:
    harness = OnOneDevice(make_config(), served.echo._shared)
    served.echo._shared.max_sleeping = 4
    for name in "abc":
        await harness.load(make_echo(f"echo/{name}"))
        await harness.sleep(f"echo/{name}")
    assert [r.status for r in served.daemon.residents.all()] == ["sleeping"] * 3


async def test_one_that_only_drains_is_no_sleeper_to_make_room() -> None:
    async with serve(make_config(drain_s=30, max_sleeping=1)) as served:
        harness = OnOneDevice(make_config(), served.echo._shared)
        busy = "echo/busy?ttft_s=1"
        for model_id in (busy, "echo/a", "echo/b"):
            await harness.load(make_echo(model_id))
        running = asyncio.create_task(complete(served, busy))
        await served.until("/health", lambda health: health["models"][0]["running"] == 1)
        draining = asyncio.create_task(harness.sleep(busy))
        await served.until_status(busy, "sleeping")
        await harness.sleep("echo/a")
        await keep_few_asleep(harness)
        await harness.sleep("echo/b")
        await keep_few_asleep(harness)
        assert not running.done()
        assert (await running)[0] == 200
        await draining


async def test_a_sleeper_has_no_claim_and_gets_it_back(served: Served) -> None:
    harness = OnOneDevice(make_config(), served.echo._shared)
    await harness.load(make_echo("echo/a"))
    await harness.sleep("echo/a")
    sleeper = served.daemon.residents.get("echo/a")
    assert sleeper is not None
    assert sleeper.claims_mb == {}
    await harness.wake("echo/a")
    awake = served.daemon.residents.get("echo/a")
    assert awake is not None
    assert awake.claims_mb == {0: 100}


async def test_an_engine_that_cannot_sleep_says_so(served: Served) -> None:
    await served.load("echo/m?can_sleep=false")
    with pytest.raises(CannotSleepError, match="Unload it instead"):
        await served.echo.sleep("echo/m?can_sleep=false")
