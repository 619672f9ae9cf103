# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that have to wait, through the whole daemon: turns, refusals, and what wakes who waits."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from neuron.config import AdmissionSettings
from neuron.testing import Served, make_config, serve

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
# One request at a time, which takes as long as it has tokens.
ONE = "echo/one?max_running=1&token_s=0.02"
STUCK = "echo/stuck?max_running=1&ttft_s=60"


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Served]:
    config = make_config(drain_s=0.5, admission=AdmissionSettings(**limits))
    async with serve(config) as served:
        yield served


async def ask(
    served: Served, model: str, *, text: str = "hi", principal: str | None = None, **fields: Any
) -> tuple[int, Any, dict[bytes, bytes]]:
    headers = [(b"x-cortex-principal", principal.encode())] if principal else []
    messages = [{"role": "user", "content": text}]
    return await served.post(CHAT, {"model": model, "messages": messages, **fields}, headers)


def counts(running: int, waiting: int) -> Callable[[Any], bool]:
    def holds(health: Any) -> bool:
        (model,) = health["models"]
        return (model["running"], model["waiting"]) == (running, waiting)

    return holds


def refusal(outcome: tuple[int, Any, dict[bytes, bytes]]) -> tuple[int, str, bytes | None]:
    status, answer, headers = outcome
    return status, answer["error"]["code"], headers.get(b"retry-after")


async def test_who_waits_is_told_of_in_health_and_gets_its_turn() -> None:
    async with serving(max_waiting=9) as served:
        await served.load(ONE)
        long = "a " * 20
        talking = [asyncio.create_task(ask(served, ONE, text=long)) for _ in range(3)]
        health = await served.until("/health", counts(1, 2))
        assert (health["models"][0]["max_running"], health["models"][0]["max_waiting"]) == (1, 9)
        assert [status for status, _, _ in await asyncio.gather(*talking)] == [200] * 3
        await served.until("/health", counts(0, 0))
        text = await _metrics(served)
    assert f'neuron_queue_wait_seconds_count{{model="{ONE}"}} 3.0' in text
    assert f'neuron_queue_waiting{{model="{ONE}"}} 0.0' in text


async def test_the_settings_go_before_the_engine_s_own_limit() -> None:
    async with serving(max_running=2) as served:
        await served.load("echo/m?ttft_s=60")
        talking = [asyncio.create_task(ask(served, "echo/m?ttft_s=60")) for _ in range(5)]
        await served.until("/health", counts(2, 3))
        await _cancel(served, *talking)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_full_queue_is_a_429_before_any_answer(stream: bool) -> None:
    async with serving(max_waiting=2) as served:
        await served.load(STUCK)
        talking = [asyncio.create_task(ask(served, STUCK)) for _ in range(3)]
        await served.until("/health", counts(1, 2))
        got = await ask(served, STUCK, stream=stream)
        assert refusal(got) == (429, "queue_full", b"4")
        await _cancel(served, *talking)
        text = await _metrics(served)
    assert f'neuron_rejections_total{{code="queue_full",model="{STUCK}"}} 1.0' in text


async def test_who_waited_too_long_is_a_503() -> None:
    async with serving(max_wait_s=0.05) as served:
        await served.load(STUCK)
        running = asyncio.create_task(ask(served, STUCK))
        await served.until("/health", counts(1, 0))
        assert refusal(await ask(served, STUCK)) == (503, "wait_timeout", b"2")
        await _cancel(served, running)


async def test_one_principal_at_its_cap_does_not_keep_another_out() -> None:
    async with serving(max_per_principal=2) as served:
        await served.load(STUCK)
        talking = [asyncio.create_task(ask(served, STUCK, principal="a")) for _ in range(2)]
        await served.until("/health", counts(1, 1))
        assert refusal(await ask(served, STUCK, principal="a"))[:2] == (429, "rate_limit_exceeded")
        talking += [asyncio.create_task(ask(served, STUCK, principal="b"))]
        talking += [asyncio.create_task(ask(served, STUCK)) for _ in range(2)]
        await served.until("/health", counts(1, 4))
        assert refusal(await ask(served, STUCK))[:2] == (429, "rate_limit_exceeded")
        await _cancel(served, *talking)


async def test_a_single_request_goes_before_another_s_burst() -> None:
    async with serving() as served:
        await served.load(ONE)
        ended: list[str] = []

        async def talk(principal: str) -> None:
            await ask(served, ONE, text="a a a", principal=principal)
            ended.append(principal)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(talk("burst"))
            await served.until("/health", lambda health: health["models"][0]["waiting"] > 10)
            tasks.create_task(talk("single"))
    assert ended.index("single") <= 19 - 8
    assert len(ended) == 21


async def test_a_client_that_leaves_the_queue_gives_its_place_back() -> None:
    async with serving() as served:
        await served.load(STUCK)
        running = asyncio.create_task(ask(served, STUCK))
        await served.until("/health", counts(1, 0))
        waiting = [asyncio.create_task(ask(served, STUCK)) for _ in range(5)]
        await served.until("/health", counts(1, 5))
        await _cancel(served, *waiting, leaves=counts(1, 0))
        await _cancel(served, running)


async def test_an_unload_sends_who_waits_elsewhere_and_lets_who_runs_end() -> None:
    async with serving() as served:
        await served.load(ONE)
        running = asyncio.create_task(ask(served, ONE, text="a " * 10))
        await served.until("/health", counts(1, 0))
        waiting = asyncio.create_task(ask(served, ONE))
        await served.until("/health", counts(1, 1))
        unloading = asyncio.create_task(served.post("/models/unload", {"model_id": ONE}))
        assert refusal(await waiting) == (503, "no_healthy_node", b"5")
        assert not running.done()
        assert (await running)[0] == 200
        assert (await unloading)[0] == 200


async def test_an_unload_that_is_given_up_leaves_a_model_that_serves() -> None:
    async with serving() as served:
        await served.load(STUCK)
        running = asyncio.create_task(ask(served, STUCK))
        await served.until("/health", counts(1, 0))
        status, answer, _ = await served.post("/models/unload", {"model_id": STUCK})
        assert (status, answer["error"]["code"]) == (503, "wait_timeout")
        waiting = asyncio.create_task(ask(served, STUCK))
        await served.until("/health", counts(1, 1))
        await _cancel(served, running, waiting)


async def test_an_engine_that_is_killed_wakes_who_waits_at_once() -> None:
    async with serving() as served:
        await served.load(STUCK)
        talking = [asyncio.create_task(ask(served, STUCK)) for _ in range(3)]
        await served.until("/health", counts(1, 2))
        os.kill(served.host_pids[0], signal.SIGKILL)
        async with asyncio.timeout(1):
            outcomes = await asyncio.gather(*talking)
    assert sorted(refusal(outcome)[:2] for outcome in outcomes) == [
        (502, "engine_died"),
        (503, "model_recovering"),
        (503, "model_recovering"),
    ]


async def test_a_daemon_that_stops_wakes_who_waits_at_once() -> None:
    async with serving() as served:
        await served.load(STUCK)
        running = asyncio.create_task(ask(served, STUCK))
        await served.until("/health", counts(1, 0))
        waiting = [asyncio.create_task(ask(served, STUCK)) for _ in range(3)]
        await served.until("/health", counts(1, 3))
        stopping = asyncio.create_task(served.daemon.stop())
        async with asyncio.timeout(0.3):
            outcomes = await asyncio.gather(*waiting)
        assert [refusal(outcome) for outcome in outcomes] == [(503, "shutting_down", b"15")] * 3
        await asyncio.wait({running, stopping})


async def _cancel(
    served: Served,
    *talking: "asyncio.Task[Any]",
    leaves: Callable[[Any], bool] = counts(0, 0),  # noqa: B008 - a function of its numbers
) -> None:
    for task in talking:
        task.cancel()
    await asyncio.wait(talking)
    await served.until("/health", leaves, within_s=2)


async def _metrics(served: Served) -> str:
    async with served.client.open("GET", "/metrics") as reply:
        raw = b""
        while chunk := await reply.read():
            raw += chunk
    return raw.decode()
