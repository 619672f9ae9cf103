# SPDX-License-Identifier: GPL-3.0-or-later
"""POST /models/count, with real engine hosts: of models that are up, asleep, coming up, gone, and never were."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex_core.control import ModelSpec
from cortex_core.http.client import read_all
from neuron.config import Config, HarnessEntry, HarnessSettings, VllmSettings
from neuron.testing import Served, make_config, make_echo, serve

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "one two three"}]


async def count(served: Served, spec: ModelSpec, messages: Any = MESSAGES) -> tuple[int, Any, Any]:
    request = {"model": "whatever the gateway calls it", "messages": messages}
    body = {"spec": msgspec.to_builtins(spec), "request": request}
    return await served.post("/models/count", body)


def started(served: Served) -> list[str]:
    return [counter.model for counter in served.daemon.counters._all if counter.is_running]


async def test_a_model_that_was_never_up_is_counted_and_not_loaded(served: Served) -> None:
    status, answer, _ = await count(served, make_echo("echo/m?load_s=99&fail=load"))
    assert (status, answer["count"]) == (200, 3)
    assert await served.get("/models") == []
    assert started(served) == ["echo/m?load_s=99&fail=load"]


async def test_models_that_are_not_here_have_no_series_of_their_own(served: Served) -> None:
    await served.load("echo/here")
    for name in ("here", "a", "b"):
        assert (await count(served, make_echo(f"echo/{name}")))[0] == 200
    async with served.client.open("GET", "/metrics") as reply:
        text = (await read_all(reply)).decode()
    counted = [line for line in text.splitlines() if line.startswith("neuron_requests_total")]
    assert counted == [
        'neuron_requests_total{code="ok",model="echo/here"} 1.0',
        'neuron_requests_total{code="ok",model="unknown"} 2.0',
    ]


async def test_a_model_that_is_up_is_counted_by_its_engine(served: Served) -> None:
    await served.load("echo/m?can_sleep=1")
    status, answer, _ = await count(served, make_echo("echo/m?can_sleep=1"))
    assert (status, answer["count"]) == (200, 3)
    await served.post("/models/sleep", {"model_id": "echo/m?can_sleep=1"})
    assert (await count(served, make_echo("echo/m?can_sleep=1")))[0] == 200
    assert served.status("echo/m?can_sleep=1") == "sleeping"
    assert started(served) == []


async def test_a_model_on_its_way_is_counted_before_it_is_there(served: Served) -> None:
    await served.load("echo/m?load_s=30", wait=False)
    # Whoever asks may have another spec in mind: what is coming up is what will serve.
    status, answer, _ = await count(served, ModelSpec(model_id="echo/m?load_s=30"))
    assert (status, answer["count"], served.status("echo/m?load_s=30")) == (200, 3, "loading")


async def test_a_count_does_not_wait_behind_long_answers(served: Served) -> None:
    model = "echo/m?max_running=1&tokens=1000&token_s=1"
    await served.load(model)
    body = {"model": model, "messages": MESSAGES}
    talking = asyncio.create_task(served.post("/v1/chat/completions", body))
    await served.until("/health", lambda h: h["models"][0]["running"] == 1)
    async with asyncio.timeout(5):
        assert (await served.post("/tokenize", body))[1]["count"] == 3
        assert (await count(served, make_echo(model)))[1]["count"] == 3
    assert not talking.done()
    talking.cancel()
    await asyncio.wait({talking})


async def test_a_burst_starts_one_process(served: Served) -> None:
    answers = await asyncio.gather(*(count(served, make_echo("echo/m")) for _ in range(20)))
    assert {(status, answer["count"]) for status, answer, _ in answers} == {(200, 3)}
    assert started(served) == ["echo/m"]


async def test_what_is_wrong_with_a_request_is_told_as_the_engine_tells_it(served: Served) -> None:
    status, answer, _ = await count(served, make_echo("echo/m"), messages=3)
    assert (status, answer["error"]["code"]) == (400, "invalid_request_body")
    status, answer, _ = await served.post("/models/count", {"spec": {"model_id": "m"}})
    assert (status, answer["error"]["code"]) == (400, "invalid_request_body")


@pytest.fixture
async def without_files(tmp_path: Path) -> AsyncIterator[Served]:
    """A daemon whose `vllm` has one folder of models, and may fetch none."""
    (tmp_path / "models/org/broken").mkdir(parents=True)
    for name, text in {"config.json": "{", "tokenizer.json": "x", "model.safetensors": "x"}.items():
        (tmp_path / "models/org/broken" / name).write_text(text)
    settings = VllmSettings(
        download=False, warm_spare=False, model_dirs=[str(tmp_path / "models")], python="/nowhere"
    )
    config = Config(harnesses=[HarnessEntry(name="vllm")], harness=HarnessSettings(vllm=settings))
    async with serve(config) as made:
        yield made


async def test_a_daemon_that_stops_tells_who_waits_for_a_counter(tmp_path: Path) -> None:
    never = tmp_path / "python"
    never.write_text("#!/bin/sh\nexec sleep 60\n")
    never.chmod(0o755)
    vllm = VllmSettings(download=False, warm_spare=False, python=str(never))
    async with serve(Config(harness=HarnessSettings(vllm=vllm))) as served:
        waiting = asyncio.create_task(count(served, ModelSpec(model_id="helexa/demo")))
        async with asyncio.timeout(5):
            while not started(served):
                await asyncio.sleep(0.01)
            await served.daemon.stop()
        status, answer, _ = await waiting
    assert (status, answer["error"]["code"]) == (503, "shutting_down")


async def test_without_its_files_a_model_is_not_loaded(without_files: Served) -> None:
    for spec in (ModelSpec(model_id="org/nowhere"), make_echo("org/none-of-this-harness")):
        status, answer, fields = await count(without_files, spec)
        assert (status, answer["error"]["code"]) == (503, "model_loading")
        assert fields[b"retry-after"] == b"5"


async def test_why_a_model_cannot_be_counted_is_told(without_files: Served) -> None:
    status, answer, _ = await count(without_files, ModelSpec(model_id="org/broken"))
    assert (status, answer["error"]["code"]) == (502, "load_failed")
    assert "/nowhere cannot be run" in answer["error"]["message"]


async def test_the_spec_of_the_daemon_is_used_where_it_has_one() -> None:
    default = make_echo("echo/m")
    async with serve(make_config(default_models=[default])) as served:
        status, _, _ = await count(served, ModelSpec(model_id="echo/m"))
        assert status == 200
