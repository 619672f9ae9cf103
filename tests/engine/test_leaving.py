# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that goes away frees the engine within a second; what the engine does is told as it is."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = {"max_tokens": 4000, "ignore_eos": True}


async def until(true: Callable[[], bool], within_s: float) -> float:
    """Wait for it; how long it took."""
    began_s = time.monotonic()
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.005)
    return time.monotonic() - began_s


def asked(**fields: Any) -> dict[str, Any]:
    return {
        "model": "helexa/demo",
        "messages": [{"role": "user", "content": "Count to a hundred."}],
        **LONG,
        **fields,
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_engine(model: Any, stream: bool) -> None:
    leave = asyncio.Event()
    path = "/v1/chat/completions"
    task = asyncio.create_task(model.post(path, asked(stream=stream), leave=leave))
    await until(lambda: model.engine.activity().running == 1, 5)
    leave.set()
    await until(lambda: model.engine.activity().running == 0, 1)
    assert model.engine.activity().waiting == 0
    await task


async def test_clients_that_leave_the_queue_are_not_waited_for(model: Any) -> None:
    leave = asyncio.Event()
    path = "/v1/chat/completions"
    tasks = [
        asyncio.create_task(model.post(path, asked(stream=True), leave=leave)) for _ in range(12)
    ]
    await until(lambda: model.engine.activity().running == 8, 5)
    assert model.engine.activity().waiting == 4
    leave.set()
    await until(lambda: model.engine.activity().running == 0, 1)
    assert model.engine.activity().waiting == 0
    await asyncio.gather(*tasks)


async def test_pieces_leave_as_they_are_made(model: Any) -> None:
    at_work: list[bool] = []

    def note(_: object) -> None:
        now = model.engine.activity()
        at_work.append(now.running + now.waiting > 0)

    await model.post("/v1/chat/completions", asked(stream=True, max_tokens=200), on_message=note)
    assert len(at_work) > 50
    assert at_work.count(True) > 40  # while the engine was making the rest


async def test_rates_and_kv_usage_are_told_while_it_works(model: Any) -> None:
    leave = asyncio.Event()
    task = asyncio.create_task(model.post("/v1/chat/completions", asked(stream=True), leave=leave))
    try:
        await until(lambda: model.engine.activity().kv_usage_ratio > 0, 5)
        await until(lambda: model.engine.activity().decode_tokens_per_s > 0, 5)
        assert model.engine.activity().prefill_tokens_per_s > 0
    finally:
        leave.set()
        await task
