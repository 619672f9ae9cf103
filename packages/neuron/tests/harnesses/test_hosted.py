# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads and unloads on real echo hosts."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex_core.control import ModelSpec
from cortex_core.errors import (
    LoadFailedError,
    LoadRefusedError,
    ShuttingDownError,
    SpecConflictError,
    WaitTimeoutError,
)
from cortex_core.http.client import read_all
from cortex_core.node import DeviceHealth, ModelStatus
from neuron.config import EchoSettings, HarnessSettings
from neuron.discovery import Driver, GpuReading
from neuron.harnesses.echo import EchoHarness
from neuron.harnesses.run import Launch
from neuron.testing import FakeGpus, Served, make_config, make_echo, make_gpu, serve

pytestmark = pytest.mark.slow


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_fifty_loads_of_a_model_are_one(served: Served) -> None:
    spec = make_echo("echo/m?load_s=0.2")
    states = await asyncio.gather(*(served.echo.load(spec) for _ in range(50)))
    assert {state.status for state in states} == {"loaded"}
    assert len(served.host_pids) == 1
    again = await served.echo.load(spec)
    assert again.load_s == states[0].load_s


async def test_a_load_goes_on_when_who_asked_first_leaves(served: Served) -> None:
    spec = make_echo("echo/m?load_s=0.3")
    first = asyncio.create_task(served.echo.load(spec))
    await served.until_status(spec.model_id, "loading")
    first.cancel()
    await asyncio.wait({first})
    assert (await served.echo.load(spec)).status == "loaded"
    assert len(served.host_pids) == 1


async def test_without_waiting_the_spec_is_checked_all_the_same(served: Served) -> None:
    state = await served.echo.load(make_echo("echo/m?load_s=0.2"), wait=False)
    assert state.status == "loading"
    assert state.progress is not None
    with pytest.raises(LoadRefusedError):
        await served.echo.load(make_echo("echo/n?nonsense=1"), wait=False)
    assert served.status("echo/n?nonsense=1") is None


async def test_a_load_refused_after_it_was_said_to_be_on_its_way_is_failed(served: Served) -> None:
    class Late(EchoHarness):
        async def plan_launch(self, spec: ModelSpec) -> Launch:
            self._shared.runs[spec.model_id].planned.set()  # a download has begun
            await asyncio.sleep(0.01)
            raise LoadRefusedError(
                model=spec.model_id, load_kind="empty_repo", reason="it is empty", suggestion=""
            )

    harness = Late(make_config(), served.echo._shared)
    assert (await harness.load(make_echo("echo/m"), wait=False)).status == "loading"
    await served.until_status("echo/m", "failed")
    (state,) = await served.get("/models")
    assert state["last_error"] == "it is empty"


async def test_another_spec_is_a_conflict_that_names_the_fields(served: Served) -> None:
    await served.echo.load(make_echo("echo/m"))
    with pytest.raises(SpecConflictError, match="differ in max_model_len, dtype"):
        await served.echo.load(make_echo("echo/m", dtype="x", max_model_len=8))
    same = make_echo("echo/m", tensor_parallel=1, lora={})
    assert (await served.echo.load(same)).status == "loaded"


async def test_a_model_is_not_brought_up_twice_under_its_two_names(served: Served) -> None:
    await served.echo.load(make_echo("echo/m"))
    with pytest.raises(
        SpecConflictError, match="'echo/m' is resident with another spec; they differ in model_id"
    ):
        await served.echo.load(make_echo("huggingface:echo/m"))
    assert served.echo.endpoint("huggingface:echo/m") == served.echo.endpoint("echo/m")
    asked = {"model": "huggingface:echo/m", "prompt": "a"}
    assert (await served.post("/v1/completions", asked))[0] == 200
    assert len(served.host_pids) == 1
    assert await served.echo.unload("huggingface:echo/m")


async def test_a_failed_model_goes_when_it_is_loaded_by_its_other_name(served: Served) -> None:
    for model_id in ("echo/m?fail=load", "huggingface:echo/m?fail=load"):
        with pytest.raises(LoadFailedError):
            await served.echo.load(make_echo(model_id))
        assert list(served.echo.models()) == [model_id]


async def test_a_failed_load_is_told_to_all_and_can_be_tried_again(served: Served) -> None:
    spec = make_echo("echo/m?fail=load")
    for _ in range(2):
        outcomes = await asyncio.gather(
            *(served.echo.load(spec) for _ in range(5)), return_exceptions=True
        )
        assert {str(outcome) for outcome in outcomes} == {
            f"Loading '{spec.model_id}' on {served.daemon.found.hostname} failed (engine_start_failed): "
            "it was asked to fail, by `fail=load`."
        }
        assert served.status(spec.model_id) == "failed"
    assert served.host_pids == []


async def test_an_exit_code_of_0_is_a_failure(served: Served) -> None:
    with pytest.raises(LoadFailedError, match="ended with exit code 0"):
        await served.echo.load(make_echo("echo/m?fail=start"))


async def test_a_load_that_takes_too_long_is_given_up() -> None:
    settings = HarnessSettings(echo=EchoSettings(start_timeout_s=0.3, stop_timeout_s=2))
    async with serve(make_config(harness=settings)) as served:
        (outcome,) = await asyncio.gather(
            served.echo.load(make_echo("echo/m?load_s=60")), return_exceptions=True
        )
        assert isinstance(outcome, LoadFailedError)
        assert outcome.facts["load_kind"] == "start_timeout"


async def test_an_unload_takes_process_and_files(served: Served) -> None:
    await served.echo.load(make_echo("echo/m"))
    (pid,) = served.host_pids
    endpoint = served.echo.endpoint("echo/m")
    assert endpoint is not None
    socket = Path(endpoint.removeprefix("unix:"))
    assert socket.is_socket()  # noqa: ASYNC240
    assert await served.echo.unload("echo/m")
    assert is_gone(pid)
    assert not socket.parent.exists()
    assert not await served.echo.unload("echo/m")
    assert served.echo.models() == {}


async def test_a_load_can_be_unloaded_on_its_way(served: Served) -> None:
    loading = asyncio.create_task(served.echo.load(make_echo("echo/m?load_s=60")))
    await served.until("/models", lambda models: bool(models and served.host_pids))
    (pid,) = served.host_pids
    assert await served.echo.unload("echo/m?load_s=60")
    assert is_gone(pid)
    with pytest.raises(LoadFailedError, match="it was unloaded while it was loading"):
        await loading


async def test_a_load_cancelled_at_once_leaves_nothing(served: Served) -> None:
    loading = asyncio.create_task(served.echo.load(make_echo("echo/m")))
    await asyncio.sleep(0)
    assert await served.echo.unload("echo/m")
    with pytest.raises(LoadFailedError):
        await loading
    assert served.daemon.residents.all() == []


async def test_running_work_keeps_a_model_unless_forced(served: Served) -> None:
    model_id = "echo/m?tokens=100000&token_s=0.01"
    await served.echo.load(make_echo(model_id))
    body = {"model": model_id, "prompt": "a"}
    running = asyncio.create_task(served.post("/v1/completions", body))
    await served.until("/health", lambda health: health["models"][0]["running"] == 1)
    unloading = asyncio.create_task(served.echo.unload(model_id))
    await served.until_status(model_id, "unloading")
    refused, answer, headers = await served.post("/v1/completions", body)
    assert (refused, answer["error"]["code"]) == (503, "no_healthy_node")
    assert b"retry-after" in headers
    with pytest.raises(WaitTimeoutError, match="its requests to end"):
        await unloading
    assert served.status(model_id) == "loaded"
    assert not running.done()
    assert await served.echo.unload(model_id, force=True)
    code, answer, _ = await running
    assert (code, answer["error"]["code"]) == (502, "engine_died")
    assert "unloaded" in answer["error"]["message"]


async def test_an_unload_waits_for_running_work(served: Served) -> None:
    model_id = "echo/m?ttft_s=0.2"
    await served.echo.load(make_echo(model_id))
    running = asyncio.create_task(
        served.post("/v1/completions", {"model": model_id, "prompt": "a b"})
    )
    await served.until("/health", lambda health: health["models"][0]["running"] == 1)
    assert await served.echo.unload(model_id)
    code, answer, _ = await running
    assert (code, answer["choices"][0]["text"]) == (200, "a b")


async def test_a_load_during_an_unload_waits_and_loads(served: Served) -> None:
    await served.echo.load(make_echo("echo/m"))
    before = served.host_pids
    unloading = asyncio.create_task(served.echo.unload("echo/m"))
    await asyncio.sleep(0)  # its first step
    assert served.status("echo/m") == "unloading"
    assert (await served.echo.load(make_echo("echo/m"))).status == "loaded"
    assert await unloading
    assert served.host_pids != before


async def test_a_load_during_an_unload_that_is_given_up_is_told_that_it_serves(
    served: Served,
) -> None:
    model_id = "echo/m?tokens=100000&token_s=0.01"
    await served.load(model_id)
    body = {"model": model_id, "prompt": "a"}
    running = asyncio.create_task(served.post("/v1/completions", body))
    await served.until("/health", lambda health: health["models"][0]["running"] == 1)
    unloading = asyncio.create_task(served.echo.unload(model_id))
    await served.until_status(model_id, "unloading")
    async with asyncio.timeout(5):
        assert (await served.echo.load(make_echo(model_id))).status == "loaded"
    with pytest.raises(WaitTimeoutError):
        await unloading
    await served.echo.unload(model_id, force=True)
    await running


async def test_a_load_between_a_sleep_and_an_unload_that_are_given_up_ends(served: Served) -> None:
    model_id = "echo/m?tokens=100000&token_s=0.01"
    await served.load(model_id)
    running = asyncio.create_task(
        served.post("/v1/completions", {"model": model_id, "prompt": "a"})
    )
    await served.until("/health", lambda health: health["models"][0]["running"] == 1)
    sleeping = asyncio.create_task(served.echo.sleep(model_id))
    await served.until_status(model_id, "sleeping")
    loading = asyncio.create_task(served.echo.load(make_echo(model_id)))
    await asyncio.sleep(0)  # its first step
    unloading = asyncio.create_task(served.echo.unload(model_id))
    async with asyncio.timeout(5):
        await asyncio.wait({sleeping, unloading})
        assert (await loading).status == "loaded"
    assert served.status(model_id) == "loaded"
    unloading.exception()
    sleeping.exception()
    await served.echo.unload(model_id, force=True)
    await running


async def test_closing_tells_who_waits_for_a_load_at_once(served: Served) -> None:
    loading = asyncio.create_task(served.echo.load(make_echo("echo/m?load_s=60")))
    await served.until_status("echo/m?load_s=60", "loading")
    served.echo.close()
    with pytest.raises(ShuttingDownError):
        await loading
    with pytest.raises(ShuttingDownError):
        await served.echo.load(make_echo("echo/other"))
    await served.echo.stop()
    assert served.daemon.residents.all() == []


class OnDevices(EchoHarness):
    """Echo engines that claim devices."""

    devices: Mapping[str, list[int]] = {}

    async def plan_launch(self, spec: ModelSpec) -> Launch:
        launch = await super().plan_launch(spec)
        return msgspec.structs.replace(launch, devices=self.devices[spec.model_id])


@pytest.mark.parametrize(
    ("devices", "together"), [([[0], [0, 1], [1, 0]], 1), ([[0], [1], [2]], 3)]
)
async def test_a_device_never_has_two_engines_starting(
    served: Served, devices: list[list[int]], together: int
) -> None:
    ids = [f"echo/{name}?load_s=0.2" for name in "abc"]
    harness = OnDevices(make_config(), served.echo._shared)
    harness.devices = dict(zip(ids, devices, strict=True))
    most = 0

    def count() -> int:
        return sum(
            r.status is ModelStatus.LOADING and r.phase.phase in ("starting", "loading")
            for r in served.daemon.residents.all()
        )

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, count())
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    states: list[Any] = await asyncio.gather(*(harness.load(make_echo(i)) for i in ids))
    watching.cancel()
    assert [state.status for state in states] == ["loaded"] * 3
    assert most == together


class Claiming(EchoHarness):
    """Echo engines that claim memory of a GPU, and take none."""

    async def plan_launch(self, spec: ModelSpec) -> Launch:
        launch = await super().plan_launch(spec)
        return msgspec.structs.replace(launch, devices=[0], claims_mb={0: 1000})


@pytest.mark.parametrize(("is_alone", "leaks"), [(True, 1.0), (False, 0.0)])
async def test_memory_is_not_missed_while_another_model_takes_its_own(
    is_alone: bool, leaks: float
) -> None:
    reading = GpuReading(DeviceHealth(index=0, vram_used_mb=1, vram_free_mb=23_999), {})
    gpus = FakeGpus(Driver(devices=[make_gpu()]), [reading])
    async with serve(make_config(), gpus) as served:
        harness = Claiming(make_config(), served.echo._shared)
        await harness.load(make_echo("echo/m"))
        coming = make_echo("echo/coming?load_s=30")
        loading = asyncio.create_task(harness.load(coming)) if not is_alone else None
        if loading:
            await served.until("/models", lambda _: len(served.host_pids) == 2)
        await harness.unload("echo/m")
        async with served.client.open("GET", "/metrics") as reply:
            assert f"neuron_memory_leaks_total {leaks}".encode() in await read_all(reply)
        if loading:
            await harness.unload(coming.model_id, force=True)
            await asyncio.gather(loading, return_exceptions=True)


async def test_a_refused_load_that_is_tried_again_at_once_is_a_load_of_its_own(
    served: Served,
) -> None:
    class Hesitant(EchoHarness):
        tried = 0

        async def plan_launch(self, spec: ModelSpec) -> Launch:
            self.tried += 1
            if self.tried == 1:
                raise LoadRefusedError(
                    model=spec.model_id, load_kind="empty_repo", reason="no", suggestion=""
                )
            return await super().plan_launch(spec)

    harness = Hesitant(make_config(), served.echo._shared)
    with pytest.raises(LoadRefusedError):
        await harness.load(make_echo("echo/m"))
    # Before the first one's run has seen its own end.
    assert (await harness.load(make_echo("echo/m"))).status == "loaded"
    assert served.status("echo/m") == "loaded"


async def test_a_fault_of_ours_fails_one_model_and_no_other(served: Served) -> None:
    class Broken(EchoHarness):
        async def plan_launch(self, spec: ModelSpec) -> Launch:
            raise RuntimeError("we did not think of this")

    await served.echo.load(make_echo("echo/good"))
    with pytest.raises(LoadFailedError, match="we did not think of this"):
        await Broken(make_config(), served.echo._shared).load(make_echo("echo/bad"))
    assert served.status("echo/good") == "loaded"


async def test_a_fault_of_ours_in_a_reload_ends_no_engine(served: Served) -> None:
    class Broken(EchoHarness):
        async def unload(self, model_id: str, *, force: bool = False) -> bool:
            raise RuntimeError("we did not think of this")

    broken = Broken(make_config(), served.echo._shared)
    await broken.load(make_echo("echo/m"))
    with pytest.raises(LoadFailedError, match="we did not think of this"):
        await broken.reload("echo/m")
    assert served.status("echo/m") == "loaded"
