# SPDX-License-Identifier: GPL-3.0-or-later
"""An EngineCore that is killed: requests fail with an error that can be retried, at once, and it is told."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex_core.errors import EngineDiedError


def children() -> set[int]:
    """Processes that this one started, whichever thread did."""
    threads = Path("/proc/self/task").glob("*/children")
    return {int(pid) for thread in threads for pid in thread.read_text().split()}


async def test_a_killed_engine_is_told_within_a_second(run_dir: Path, start_model: Any) -> None:
    before = children()
    model = await start_model(run_dir)
    (engine_core,) = children() - before
    asked = {
        "messages": [{"role": "user", "content": "Count to a hundred."}],
        "max_tokens": 4000,
        "ignore_eos": True,
    }
    begun = asyncio.Event()
    path = "/v1/chat/completions"
    stream = asyncio.create_task(
        model.post(path, {**asked, "stream": True}, on_message=lambda _: begun.set())
    )
    whole = asyncio.create_task(model.post(path, asked))
    await begun.wait()
    killed_s = time.monotonic()
    os.kill(engine_core, signal.SIGKILL)
    streamed, answer = await asyncio.gather(stream, whole)
    assert time.monotonic() - killed_s < 1
    assert answer.status == 502
    assert answer.json["error"]["code"] == "engine_died"
    assert answer.header(b"retry-after") == b"2"
    *_, error, done, _ = streamed.body.split(b"\n\n")
    assert msgspec.json.decode(error.removeprefix(b"data: "))["error"]["code"] == "engine_died"
    assert done == b"data: [DONE]"
    later = await model.post(path, {**asked, "stream": True})
    assert (later.status, later.json["error"]["code"]) == (502, "engine_died")
    with pytest.raises(EngineDiedError):
        model.engine.activity()
    await model.engine.stop()
    assert list(run_dir.iterdir()) == []


async def test_what_runs_when_an_engine_is_stopped_ends_in_an_error(
    run_dir: Path, start_model: Any
) -> None:
    model = await start_model(run_dir)
    path, begun = "/v1/completions", asyncio.Event()
    asked = {"prompt": [10] * 8, "max_tokens": 4000, "ignore_eos": True}
    whole = asyncio.create_task(model.post(path, asked))
    streamed = asyncio.create_task(
        model.post(path, {**asked, "stream": True}, on_message=lambda _: begun.set())
    )
    await begun.wait()
    await model.engine.stop()
    answer = await whole
    assert (answer.status, answer.json["error"]["code"]) == (502, "engine_died")
    *_, error, done, _ = (await streamed).body.split(b"\n\n")
    assert msgspec.json.decode(error.removeprefix(b"data: "))["error"]["code"] == "engine_died"
    assert done == b"data: [DONE]"
