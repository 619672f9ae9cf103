# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines that are lost, on real echo hosts: what is told, what comes back, what stays."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cortex_core.errors import LoadFailedError
from cortex_core.http.client import read_all
from cortex_core.node import ModelStatus
from neuron.config import EchoSettings, HarnessSettings, SupervisionSettings
from neuron.harnesses.life import Life
from neuron.harnesses.run import Run
from neuron.host.messages import Failed
from neuron.residents import Failure, Resident
from neuron.testing import Left, Served, make_config, make_echo, nothing_is_left, serve

pytestmark = pytest.mark.slow

HEARTBEAT_S = 1.0
QUICK = SupervisionSettings(heartbeat_timeout_s=HEARTBEAT_S, probe_interval_s=0.1, max_restarts=2)


@pytest.fixture
async def quick() -> AsyncIterator[Served]:
    """A daemon that notices soon, and gives up soon."""
    async with serve(make_config(supervision=QUICK)) as served:
        yield served


def resident(served: Served, model_id: str) -> Resident:
    found = served.daemon.residents.get(model_id)
    assert found is not None
    return found


async def until(served: Served, model_id: str, status: ModelStatus) -> Resident:
    await served.until_status(model_id, status)
    return resident(served, model_id)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def serves(served: Served, model_id: str) -> bool:
    code, answer, _ = await served.post("/v1/completions", {"model": model_id, "prompt": "a"})
    return (code, answer["choices"][0]["text"] if code == 200 else answer) == (200, "a")


@pytest.mark.parametrize(
    ("number", "within_s", "reason"),
    [
        (signal.SIGKILL, 1.0, "its process was killed by SIGKILL"),
        (signal.SIGSTOP, HEARTBEAT_S + 1, "was stopped for 1 s|it said nothing for 1 s"),
    ],
)
async def test_a_lost_engine_is_told_and_comes_back_and_no_other_notices(
    quick: Served, number: signal.Signals, within_s: float, reason: str
) -> None:
    running_id, other_id = "echo/m?tokens=100000&token_s=0.01", "echo/other"
    await quick.load(running_id)
    (pid,) = quick.host_pids
    await quick.load(other_id)
    asked = asyncio.create_task(quick.post("/v1/completions", {"model": running_id, "prompt": "a"}))
    await quick.until("/health", lambda health: health["models"][0]["running"] == 1)
    lost_s = time.monotonic()
    os.kill(pid, number)
    code, answer, headers = await asked
    assert time.monotonic() - lost_s < within_s
    assert (code, answer["error"]["code"]) == (502, "engine_died")
    assert b"retry-after" in headers
    assert await serves(quick, other_id)
    again = await until(quick, running_id, ModelStatus.LOADED)
    assert again.pid != pid
    assert again.failure is not None
    assert re.search(reason, again.failure.reason)
    assert is_gone(pid)


@pytest.mark.parametrize(
    ("number", "within_s"), [(signal.SIGKILL, 1.0), (signal.SIGSTOP, HEARTBEAT_S + 1)]
)
async def test_a_lost_sleeper_is_told_and_leaves_nothing_and_no_other_notices(
    quick: Served, number: signal.Signals, within_s: float
) -> None:
    await quick.load("echo/other")
    assert await serves(quick, "echo/other")
    before = Left.look(quick)
    await quick.load("echo/m")
    await quick.echo.sleep("echo/m")
    pid = resident(quick, "echo/m").pid
    assert pid is not None
    lost_s = time.monotonic()
    os.kill(pid, number)
    while quick.status("echo/m") == "sleeping":
        assert await serves(quick, "echo/other")
    assert time.monotonic() - lost_s < within_s
    code, answer, _ = await quick.post("/v1/completions", {"model": "echo/m", "prompt": "a"})
    assert (code, answer["error"]["code"]) == (502, "engine_died")
    assert await serves(quick, "echo/other")
    await nothing_is_left(quick, before, lost=pid)
    assert (await quick.load("echo/m"))["status"] == "loaded"


@pytest.mark.parametrize(
    ("fail", "kind", "reason"),
    [
        ("hang", "engine_hung", "its engine did not answer for 1 s"),
        ("poison", "engine_poisoned", "it was asked to, by `fail=poison`"),
    ],
)
async def test_an_engine_that_only_looks_alive_is_replaced(
    quick: Served, fail: str, kind: str, reason: str
) -> None:
    model_id = f"echo/m?fail={fail}&tokens=8&token_s=0.01"
    await quick.load(model_id)
    (pid,) = quick.host_pids
    asked = asyncio.create_task(quick.post("/v1/completions", {"model": model_id, "prompt": "a"}))
    lost = await until(quick, model_id, ModelStatus.RECOVERING)
    assert lost.failure == Failure(kind=kind, reason=reason)
    code, answer, _ = await asked
    if fail == "hang":
        assert (code, answer["error"]["code"]) == (502, "engine_died")
        assert reason in answer["error"]["message"]
    assert (await until(quick, model_id, ModelStatus.LOADED)).pid != pid


async def test_while_it_recovers_requests_are_told_to_come_back(quick: Served) -> None:
    model_id = "echo/m?load_s=0.5"
    await quick.load(model_id)
    os.kill(quick.host_pids[0], signal.SIGKILL)
    await until(quick, model_id, ModelStatus.RECOVERING)
    code, answer, headers = await quick.post("/v1/completions", {"model": model_id, "prompt": "a"})
    assert (code, answer["error"]["code"]) == (503, "model_recovering")
    assert headers[b"retry-after"] == b"2"
    (state,) = await quick.get("/models")
    assert state["status"] == "recovering"
    assert state["last_error"] == "its process was killed by SIGKILL"


async def test_a_load_of_a_recovering_model_waits_until_it_serves(quick: Served) -> None:
    model_id = "echo/m?load_s=0.3"
    await quick.load(model_id)
    os.kill(quick.host_pids[0], signal.SIGKILL)
    await until(quick, model_id, ModelStatus.RECOVERING)
    assert (await quick.load(model_id))["status"] == "loaded"
    assert await serves(quick, model_id)


async def test_an_engine_that_is_lost_too_often_is_failed_and_can_be_loaded_again(
    quick: Served,
) -> None:
    await quick.load("echo/m")
    for lives in range(3):
        pid = (await until(quick, "echo/m", ModelStatus.LOADED)).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        if lives < 2:
            await until(quick, "echo/m", ModelStatus.RECOVERING)
    failed = await until(quick, "echo/m", ModelStatus.FAILED)
    assert failed.failure is not None
    assert failed.failure.reason == (
        "it was lost 3 times within 600 s of service, the last time since its process was killed by SIGKILL"
    )
    code, answer, headers = await quick.post("/v1/completions", {"model": "echo/m", "prompt": "a"})
    assert (code, answer["error"]["code"]) == (502, "load_failed")
    assert b"retry-after" not in headers
    assert (await quick.load("echo/m"))["status"] == "loaded"


async def test_who_waits_for_a_recovery_is_told_when_it_is_given_up() -> None:
    once = SupervisionSettings(max_restarts=1)
    async with serve(make_config(supervision=once)) as served:
        model_id = "echo/m?load_s=0.3"
        await served.load(model_id)
        os.kill(served.host_pids[0], signal.SIGKILL)
        await until(served, model_id, ModelStatus.RECOVERING)
        waiting = asyncio.create_task(served.echo.load(make_echo(model_id)))
        await served.until("/models", lambda _: bool(served.host_pids))
        os.kill(served.host_pids[0], signal.SIGKILL)
        with pytest.raises(LoadFailedError, match="it was lost 2 times"):
            await waiting


async def test_a_recovering_model_can_be_unloaded(quick: Served) -> None:
    await quick.load("echo/m")
    os.kill(quick.host_pids[0], signal.SIGKILL)
    await until(quick, "echo/m", ModelStatus.RECOVERING)
    assert await quick.echo.unload("echo/m")
    assert quick.daemon.residents.all() == []


async def test_a_stopped_start_is_given_up_in_time(quick: Served) -> None:
    loading = asyncio.create_task(quick.echo.load(make_echo("echo/m?load_s=60")))
    await quick.until("/models", lambda _: bool(quick.host_pids))
    (pid,) = quick.host_pids
    os.kill(pid, signal.SIGSTOP)
    began_s = time.monotonic()
    with pytest.raises(LoadFailedError) as caught:
        await loading
    assert caught.value.facts["load_kind"] == "start_hung"
    assert time.monotonic() - began_s < HEARTBEAT_S + 1
    assert is_gone(pid)


async def test_an_unload_of_a_stopped_engine_is_bounded() -> None:
    settings = HarnessSettings(echo=EchoSettings(stop_timeout_s=0.5))
    async with serve(make_config(harness=settings)) as served:
        await served.load("echo/m")
        (pid,) = served.host_pids
        os.kill(pid, signal.SIGSTOP)
        began_s = time.monotonic()
        assert await served.echo.unload("echo/m")
        assert 0.5 <= time.monotonic() - began_s < 2.5
        assert is_gone(pid)


async def test_what_was_lost_is_counted(quick: Served) -> None:
    await quick.load("echo/m")
    os.kill(quick.host_pids[0], signal.SIGKILL)
    await until(quick, "echo/m", ModelStatus.RECOVERING)
    async with quick.client.open("GET", "/metrics") as reply:
        text = await read_all(reply)
    assert b'neuron_engine_failures_total{model="echo/m"} 1.0' in text


async def test_the_logits_of_a_poisoned_engine_are_told_for_prefill_and_decode(
    served: Served,
) -> None:
    life = Life(Run(make_echo("echo/m")), served.echo.plan_launch, served.echo._shared)
    seen = [
        {"phase": "prefill", "nan": 7.0, "finite_mean": 0.0},
        {"phase": "decode", "nan": 8.0, "finite_mean": 0.5},
    ]
    with capture_logs() as lines:
        life._read_failed(Failed(kind="engine_poisoned", message="no numbers", logits=seen))
    assert lines == [
        {"event": "logits unsound", "log_level": "warning", "model": "echo/m", **step}
        for step in seen
    ]
