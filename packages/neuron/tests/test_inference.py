# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import json
import os
import signal
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from cortex_core import sse
from cortex_core.control import ModelSpec
from cortex_core.node import DeviceHealth
from neuron.discovery import Driver, GpuReading
from neuron.harnesses.echo import EchoHarness
from neuron.harnesses.run import Launch
from neuron.testing import FakeGpus, Served, make_config, make_echo, make_gpu, serve

pytestmark = pytest.mark.slow

LONG = "echo/long?tokens=100000&token_s=0.005"
CHAT = "/v1/chat/completions"


def ask(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two three"}], **fields}


def is_running(count: int) -> Any:
    return lambda health: sum(m["running"] + m["waiting"] for m in health["models"]) == count


def events(raw: bytes) -> list[sse.Event]:
    return [sse.read_event(event) for event in sse.Splitter().feed(raw)]


def told_error(raw: bytes) -> dict[str, Any]:
    """The error that a stream ended with, before its `[DONE]`."""
    *_, last, done = events(raw)
    assert done.data == b"[DONE]"
    error: dict[str, Any] = json.loads(last.data or b"")["error"]
    return error


async def test_a_whole_answer_and_a_stream_say_the_same(served: Served) -> None:
    await served.load("echo/m")
    status, answer, _ = await served.post(CHAT, ask("echo/m"))
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "one two three")
    status, raw, headers = await served.post(CHAT, ask("echo/m", stream=True))
    assert (status, headers[b"content-type"]) == (200, b"text/event-stream; charset=utf-8")
    *chunks, done = events(raw)
    assert done.data == b"[DONE]"
    deltas = [json.loads(c.data or b"")["choices"][0]["delta"] for c in chunks]
    assert "".join(d.get("content", "") for d in deltas) == "one two three"


@pytest.mark.parametrize(
    ("fields", "asks", "chunk", "comment"),
    [
        ({}, False, False, False),
        ({"stream_options": {"include_usage": True}}, False, True, False),
        ({}, True, False, True),
        ({"stream_options": {"include_usage": True}}, True, True, True),
    ],
)
async def test_usage_comes_to_who_asks_for_it(
    served: Served, fields: dict[str, Any], asks: bool, chunk: bool, comment: bool
) -> None:
    await served.load("echo/m")
    headers = [(b"x-cortex-usage", b"1")] if asks else []
    _, raw, _ = await served.post(CHAT, ask("echo/m", stream=True, **fields), headers)
    usage = b'usage {"prompt_tokens":3,"completion_tokens":3,"total_tokens":6}'
    assert (b'"choices":[],"usage"' in raw) == chunk
    assert [e.comment for e in events(raw) if e.comment] == ([usage] if comment else [])
    if comment:
        assert events(raw)[-2].comment == usage


class OnAGpu(EchoHarness):
    """Echo engines that are on a GPU."""

    async def plan_launch(self, spec: ModelSpec) -> Launch:
        return msgspec.structs.replace(await super().plan_launch(spec), devices=[1])


async def test_a_stream_s_line_tells_what_is_free_of_its_device_and_a_whole_answer_s_does_not() -> (
    None
):
    readings = [
        GpuReading(DeviceHealth(index=index, vram_used_mb=1, vram_free_mb=free_mb), {})
        for index, free_mb in enumerate((5, 7000))
    ]
    driver = Driver(devices=[make_gpu(0), make_gpu(1)])
    async with serve(make_config(), FakeGpus(driver, readings)) as served:
        await OnAGpu(make_config(), served.echo._shared).load(make_echo("echo/m"))
        await served.daemon.measuring.measure()
        with capture_logs() as lines:
            for stream in (True, False):
                await served.post(CHAT, ask("echo/m", stream=stream))
    told = [line.get("vram_free_mb") for line in lines if line["event"] == "request"]
    assert told == [7000, None]


async def test_a_model_with_a_scheme_answers_to_its_bare_id(served: Served) -> None:
    await served.load("lab:echo/m")
    _, answer, _ = await served.post(CHAT, ask("echo/m"))
    assert answer["model"] == "lab:echo/m"


async def test_an_adapter_is_asked_for_by_its_name_and_listed_beside_its_model(
    served: Served,
) -> None:
    await served.load("echo/m", lora={"pirate": "org/pirate"})
    status, answer, _ = await served.post(CHAT, ask("pirate"))
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "one two three")
    listed = (await served.get("/v1/models"))["data"]
    assert [(entry["id"], entry.get("parent")) for entry in listed] == [
        ("echo/m", None),
        ("pirate", "echo/m"),
    ]
    await served.load("echo/other", lora={"pirate": "org/pirate"})
    status, answer, _ = await served.post(CHAT, ask("pirate"))
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    listed = (await served.get("/v1/models"))["data"]
    assert [entry["id"] for entry in listed] == ["echo/m", "echo/other"]


async def test_tools_and_reasoning_come_as_asked_for(served: Served) -> None:
    model = "echo/m?tools=1&reasoning=1"
    await served.load(model)
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    _, answer, _ = await served.post(CHAT, ask(model, tools=[tool]))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert choice["message"]["reasoning_content"]
    assert (await served.get("/models"))[0]["capabilities"] == ["text", "tools", "reasoning"]


@pytest.mark.parametrize(
    ("body", "status", "code", "told"),
    [
        (b"{", 400, "malformed_json", "is not valid JSON: Input data was truncated"),
        ({"messages": []}, 400, "missing_model_field", "`model` is missing or empty"),
        (ask("nobody/knows"), 404, "model_not_found", "'nobody/knows' is not served here"),
        (ask("echo/m", stream="yes"), 400, "invalid_request_body", "got `str` - at `$.stream`"),
        (ask("echo/m", max_tokens="many"), 400, "invalid_request_body", "at `$.max_tokens`"),
        ({"model": "echo/m"}, 400, "invalid_request_body", "missing required field `messages`"),
        ({"model": "echo/m", "messages": []}, 400, "invalid_request_body", "`messages` is empty"),
        (
            b'{"model":"echo/m","messages":' + b"[" * 9000 + b"]" * 9000 + b"}",
            400,
            "malformed_json",
            "it is nested too deeply",
        ),
    ],
)
async def test_what_is_asked_wrongly_is_said_clearly(
    served: Served, body: Any, status: int, code: str, told: str
) -> None:
    await served.load("echo/m")
    got, answer, headers = await served.post(CHAT, body)
    assert (got, answer["error"]["code"]) == (status, code)
    assert told in answer["error"]["message"]
    assert b"retry-after" not in headers


async def test_a_body_over_the_limit_is_refused(served: Served) -> None:
    status, answer, _ = await served.post(CHAT, b" " * (65 << 20))
    assert (status, answer["error"]["code"]) == (413, "request_too_large")


async def test_a_model_that_is_coming_up_says_so(served: Served) -> None:
    await served.load("echo/m?load_s=60", wait=False)
    status, answer, headers = await served.post(CHAT, ask("echo/m?load_s=60"))
    assert (status, answer["error"]["code"]) == (503, "model_loading")
    assert int(headers[b"retry-after"]) >= 1


async def test_a_model_that_failed_says_why(served: Served) -> None:
    model = "echo/m?fail=load"
    await served.post("/models/load", {"model_id": model, "harness": "echo"})
    status, answer, headers = await served.post(CHAT, ask(model))
    assert (status, answer["error"]["code"]) == (502, "load_failed")
    assert "asked to fail" in answer["error"]["message"]
    assert b"retry-after" not in headers


async def test_an_engine_s_own_error_passes_as_it_is(served: Served) -> None:
    await served.load("echo/m?fail=status:503")
    status, answer, headers = await served.post(CHAT, ask("echo/m?fail=status:503"))
    assert (status, answer["error"]["code"]) == (503, "asked_to_fail")
    assert headers[b"retry-after"] == b"1"


@pytest.mark.parametrize(
    "model", [LONG, "echo/think?ttft_s=60", "echo/queue?max_running=1&ttft_s=60"]
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine_within_a_second(
    served: Served, model: str, stream: bool
) -> None:
    await served.load(model)
    count = 2 if "max_running" in model else 1
    talking = [
        asyncio.create_task(served.post(CHAT, ask(model, stream=stream))) for _ in range(count)
    ]
    health = await served.until("/health", is_running(count))
    assert health["models"][0]["waiting"] == count - 1
    for task in talking:
        task.cancel()
    await asyncio.wait(talking)
    await served.until("/health", is_running(0), within_s=1)


async def test_an_engine_that_dies_in_a_stream_ends_it_in_an_error_event(served: Served) -> None:
    model = "echo/m?fail=stream&tokens=50"
    await served.load(model)
    _, raw, _ = await served.post(CHAT, ask(model, stream=True))
    error = told_error(raw)
    assert error["code"] == "engine_died"
    assert "exit code 1" in error["message"]
    (state,) = await served.get("/models")
    assert state["status"] in ("recovering", "loaded")
    assert "exit code 1" in state["last_error"]
    await served.until("/models", lambda models: models[0]["status"] == "loaded")


async def test_an_engine_that_dies_before_it_answers_is_a_502(served: Served) -> None:
    model = "echo/m?fail=stream&tokens=50"
    await served.load(model)
    status, answer, headers = await served.post(CHAT, ask(model))
    assert (status, answer["error"]["code"]) == (502, "engine_died")
    assert b"retry-after" in headers


async def test_an_engine_that_is_killed_ends_every_stream_within_a_second(served: Served) -> None:
    await served.load(LONG)
    talking = [asyncio.create_task(served.post(CHAT, ask(LONG, stream=True))) for _ in range(5)]
    await served.until("/health", is_running(5))
    os.kill(served.host_pids[0], signal.SIGKILL)
    async with asyncio.timeout(1):
        answers = await asyncio.gather(*talking)
    for _, raw, _ in answers:
        error = told_error(raw)
        assert error["code"] == "engine_died"
        assert "SIGKILL" in error["message"]


async def test_requests_and_models_are_counted(served: Served) -> None:
    await served.load("echo/m")
    await served.post(CHAT, ask("echo/m"))
    await served.post(CHAT, ask("nobody/knows"))
    text = await _metrics(served)
    assert 'neuron_requests_total{code="ok",model="echo/m"} 1.0' in text
    assert 'neuron_requests_total{code="model_not_found",model="unknown"} 1.0' in text
    assert 'neuron_load_seconds_count{harness="echo"} 1.0' in text
    assert 'neuron_model_running{model="echo/m"} 0.0' in text
    assert 'neuron_model_status{model="echo/m",status="loaded"} 1.0' in text
    await served.post("/models/unload", {"model_id": "echo/m"})
    text = await _metrics(served)
    assert "echo/m" not in text
    assert 'neuron_load_seconds_count{harness="echo"} 1.0' in text


async def _metrics(served: Served) -> str:
    async with served.client.open("GET", "/metrics") as reply:
        raw = b""
        while chunk := await reply.read():
            raw += chunk
    return raw.decode()
