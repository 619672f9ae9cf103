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


LONG = {"ignore_eos": True, "temperature": 0}
ASKED = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": 4000,
    },
    "/v1/completions": {"prompt": [10] * 8, "max_tokens": 4000},
    "/v1/responses": {"input": "Count.", "max_output_tokens": 4000},
}


def read_error(stream: bytes) -> str:
    """The code of the error that a stream ends in, of any of the paths."""
    *_, last = [line for line in stream.split(b"\n") if line.startswith(b"data: {")]
    fields = msgspec.json.decode(last.removeprefix(b"data: "))
    return str(fields.get("error", fields).get("code"))


async def look_on(model: Any) -> None:
    async with asyncio.timeout(10):
        while True:  # one that was told to end takes a moment
            model.engine.activity()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("signum", "within_s"),
    # Told to end, EngineCore finishes its step, breaks off what runs, and hands out what there is of it.
    [(signal.SIGKILL, 1.0), (signal.SIGTERM, 3.0)],
)
async def test_a_killed_engine_is_told_at_once(
    run_dir: Path, start_model: Any, signum: signal.Signals, within_s: float
) -> None:
    before = children()
    model = await start_model(run_dir)
    (engine_core,) = children() - before
    begun = [asyncio.Event() for _ in ASKED]
    streams = [
        model.post(path, {**asked, **LONG, "stream": True}, on_message=lambda _, e=event: e.set())
        for (path, asked), event in zip(ASKED.items(), begun, strict=True)
    ]
    wholes = [model.post(path, {**asked, **LONG}) for path, asked in ASKED.items()]
    asking = asyncio.gather(*streams, *wholes)
    async with asyncio.timeout(20):
        for event in begun:
            await event.wait()
    killed_s = time.monotonic()
    os.kill(engine_core, signum)
    answers = await asking
    assert time.monotonic() - killed_s < within_s
    for streamed in answers[: len(ASKED)]:
        assert read_error(streamed.body) == "engine_died", streamed.body[-500:]
    for answer in answers[len(ASKED) :]:
        assert (answer.status, answer.json["error"]["code"]) == (502, "engine_died")
        assert answer.header(b"retry-after") == b"2"
    chat = "/v1/chat/completions"
    later = await model.post(chat, {**ASKED[chat], **LONG, "stream": True})
    assert (later.status, later.json["error"]["code"]) == (502, "engine_died")
    with pytest.raises(EngineDiedError):
        await look_on(model)
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
