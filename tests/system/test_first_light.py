# SPDX-License-Identifier: GPL-3.0-or-later
"""Gateway and neurons as real processes, on echo engines: what a stranger would try first."""

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cortex_core import sse

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
ECHO = '[[models]]\nid = "{id}"\nharness = "echo"\n'
LONG = "echo/long?tokens=100000&token_s=0.005"


def catalogue(*ids: str) -> str:
    return "".join(ECHO.format(id=model_id) for model_id in ids)


def ask(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two three"}], **fields}


def running(health: dict[str, Any]) -> int:
    return sum(model["running"] + model["waiting"] for model in health["models"])


async def test_a_question_is_answered_through_both_daemons(fleet: Any) -> None:
    neuron = await fleet.neuron()
    gateway = await fleet.gateway(neuron, models=catalogue("echo/small"))
    answer = await gateway.chat("echo/small", "one two three")
    assert answer["choices"][0]["message"]["content"] == "one two three"
    assert answer["model"] == "echo/small"
    status, _, raw = await gateway.post(
        "/v1/completions", {"model": "echo/small", "prompt": "four five"}
    )
    assert (status, json.loads(raw)["choices"][0]["text"]) == (200, "four five")


async def test_a_stream_comes_piece_by_piece_and_says_where_it_went(fleet: Any) -> None:
    neuron = await fleet.neuron()
    model = "echo/slow?token_s=0.05"
    gateway = await fleet.gateway(neuron, models=catalogue(model))
    await gateway.chat(model)
    times_s, events, splitter = [], [], sse.Splitter()
    body = json.dumps(ask(model, stream=True)).encode()
    async with gateway.client.open("POST", CHAT, body=body) as reply:
        while chunk := await reply.read():
            times_s.append(time.monotonic())
            events += splitter.feed(chunk)
    headers = {n.lower(): v for n, v in reply.headers}
    assert headers[b"x-cortex-node"] == b"a"
    assert headers[b"x-cortex-decision"] == b"serve"
    assert events[-1] == sse.DONE
    assert b"usage" not in b"".join(events)  # nobody asked for it
    texts = [json.loads(sse.read_event(e).data or b"")["choices"] for e in events[:-1]]
    assert "".join(c[0]["delta"].get("content") or "" for c in texts) == "one two three"
    assert times_s[-1] - times_s[0] > 0.08


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine_within_a_second(
    fleet: Any, stream: bool
) -> None:
    neuron = await fleet.neuron()
    gateway = await fleet.gateway(neuron, models=catalogue(LONG))
    await gateway.post(CHAT, ask(LONG, max_tokens=1))
    body = json.dumps(ask(LONG, stream=stream)).encode()

    async def talk() -> None:
        async with gateway.client.open("POST", CHAT, body=body) as reply:
            while await reply.read():
                pass

    request = asyncio.create_task(talk())
    await neuron.until("/health", lambda health: running(health) == 1)
    request.cancel()
    await asyncio.wait({request})
    await neuron.until("/health", lambda health: running(health) == 0, within_s=1)
    await gateway.until("/fleet", lambda f: '"in_flight":0' in json.dumps(f).replace(" ", ""), 1)


async def test_fifty_first_requests_make_one_load_and_fifty_answers(fleet: Any) -> None:
    neuron = await fleet.neuron()
    model = "echo/cold?load_s=0.5"
    gateway = await fleet.gateway(neuron, models=catalogue(model))
    answers = await asyncio.gather(*(gateway.chat(model, f"say {n}") for n in range(50)))
    assert [a["choices"][0]["message"]["content"] for a in answers] == [
        f"say {n}" for n in range(50)
    ]
    async with gateway.metrics.open("GET", "/metrics") as reply:
        text = (await reply.read()).decode()
    assert 'cortex_cold_starts_total{model="echo/cold?load_s=0.5",node="a"} 1.0' in text
    assert 'cortex_requests_total{model="echo/cold?load_s=0.5",node="a"} 50.0' in text
    async with neuron.client.open("GET", "/metrics") as reply:
        text = (await reply.read()).decode()
    assert "neuron_load_seconds_count" in text
    counts = [line for line in text.splitlines() if line.startswith("neuron_load_seconds_count")]
    assert [line.rsplit(" ", 1)[1] for line in counts] == ["1.0"]


async def test_a_load_that_fails_says_why_to_everyone_who_waits(fleet: Any) -> None:
    neuron = await fleet.neuron()
    model = "echo/never?fail=load"
    gateway = await fleet.gateway(neuron, models=catalogue(model))
    async with asyncio.timeout(10):
        got = await asyncio.gather(*(gateway.post(CHAT, ask(model)) for _ in range(5)))
    assert [(status, json.loads(raw)["error"]["code"]) for status, _, raw in got] == [
        (502, "load_failed")
    ] * 5
    assert all(b"retry-after" not in headers for _, headers, _ in got)


async def test_a_neuron_that_dies_in_a_stream_ends_it_in_an_error_event(fleet: Any) -> None:
    neuron = await fleet.neuron()
    gateway = await fleet.gateway(neuron, models=catalogue(LONG))
    await gateway.post(CHAT, ask(LONG, max_tokens=1))
    body = json.dumps(ask(LONG, stream=True)).encode()
    raw = b""
    async with gateway.client.open("POST", CHAT, body=body) as reply:
        raw += await reply.read()
        neuron.process.kill()
        async with asyncio.timeout(5):
            while chunk := await reply.read():
                raw += chunk
    *_, error, done = raw.removesuffix(b"\n\n").split(b"\n\n")
    assert b'"code":"upstream_connection_error"' in error
    assert done == b"data: [DONE]"
    status, headers, raw = await gateway.post(CHAT, ask(LONG))
    assert (status, json.loads(raw)["error"]["code"]) in (
        (502, "upstream_connection_error"),
        (503, "no_healthy_node"),
    )
    assert b"retry-after" in headers


async def test_an_engine_that_dies_in_a_stream_is_told_and_comes_back(fleet: Any) -> None:
    neuron = await fleet.neuron()
    model = "echo/fragile?fail=stream&tokens=50"
    gateway = await fleet.gateway(neuron, models=catalogue(model))
    _, _, raw = await gateway.post(CHAT, ask(model, stream=True))
    *_, error, done = raw.removesuffix(b"\n\n").split(b"\n\n")
    assert b'"code":"engine_died"' in error
    assert done == b"data: [DONE]"
    (state,) = await neuron.until("/models", lambda models: models[0]["status"] == "loaded")
    assert state["last_error"] == "its process ended with exit code 1"


async def test_no_neuron_up_is_503_with_retry_after_and_the_gateway_lives(fleet: Any) -> None:
    gateway = await fleet.gateway("http://127.0.0.1:9", models=catalogue("echo/small"))
    for model in ("echo/small", "nobody/knows"):
        status, headers, raw = await gateway.post(CHAT, ask(model))
        assert (status, json.loads(raw)["error"]["code"]) == (503, "no_healthy_node")
        assert int(headers[b"retry-after"]) >= 1
    entry = (await gateway.get("/v1/models"))["data"][0]
    assert (entry["id"], entry["loaded"]) == ("echo/small", False)


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "told"),
    [
        (CHAT, ask("nobody/knows"), 404, "model_not_found", "'nobody/knows' is not served"),
        (CHAT, b"{", 400, "malformed_json", "is not valid JSON: Input data was truncated"),
        (CHAT, {"messages": []}, 400, "missing_model_field", "`model` is missing or empty"),
        (CHAT, ask("echo/small", stream="yes"), 400, "invalid_request_body", "at `$.stream`"),
        ("/v1/completions", {"model": 3}, 400, "invalid_request_body", "at `$.model`"),
        ("/v1/nothing", {}, 404, "route_not_found", "There is no route POST /v1/nothing here."),
        (
            "/v1/models",
            {},
            405,
            "method_not_allowed",
            "/v1/models does not take POST; it takes GET",
        ),
        (CHAT, b" " * 100_000_000, 413, "request_too_large", "64 MiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_a_client_gets_wrong_is_said_clearly(
    fleet: Any, path: str, body: Any, status: int, code: str, told: str
) -> None:
    neuron = await fleet.neuron()
    gateway = await fleet.gateway(neuron, models=catalogue("echo/small"))
    for daemon in (gateway, neuron):
        got, headers, raw = await daemon.post(path, body)
        error = json.loads(raw)["error"]
        assert (got, error["code"]) == (status, code)
        assert told in error["message"], error
        assert headers[b"x-request-id"]
        assert b"retry-after" not in headers


async def test_an_alias_answers_with_the_concrete_id(fleet: Any) -> None:
    neuron = await fleet.neuron()
    models = catalogue("echo/small") + '[aliases]\nfast = "echo/small"\n'
    gateway = await fleet.gateway(neuron, models=models)
    assert (await gateway.chat("fast"))["model"] == "echo/small"
    listed = {entry["id"]: entry for entry in (await gateway.get("/v1/models"))["data"]}
    assert listed["fast"]["alias_of"] == "echo/small"
    await gateway.until("/v1/models/fast", lambda entry: entry["loaded"])


async def test_default_models_come_up_after_binding_and_one_failing_stops_no_other(
    fleet: Any,
) -> None:
    config = (
        '[[harnesses]]\nname = "echo"\n'
        '[[default_models]]\nmodel_id = "echo/bad?fail=load"\nharness = "echo"\n'
        '[[default_models]]\nmodel_id = "echo/good"\nharness = "echo"\n'
    )
    neuron = await fleet.neuron(config=config)
    health = await neuron.until("/health", lambda h: h["activation"]["state"] == "ready")
    assert health["activation"]["completed"] == ["echo/good"]
    assert [f["model_id"] for f in health["activation"]["failed"]] == ["echo/bad?fail=load"]
    gateway = await fleet.gateway(neuron)  # nobody declares it, and it is served
    assert (await gateway.chat("echo/good"))["model"] == "echo/good"


async def test_sigterm_lets_a_running_answer_end_and_refuses_new_ones(fleet: Any) -> None:
    neuron = await fleet.neuron()
    model = "echo/slow?tokens=20&token_s=0.05"
    gateway = await fleet.gateway(neuron, models=catalogue(model))
    await gateway.post(CHAT, ask(model, max_tokens=1))
    answer = asyncio.create_task(gateway.post(CHAT, ask(model, stream=True)))
    await neuron.until("/health", lambda health: running(health) == 1)
    gateway.process.send_signal(signal.SIGTERM)
    _, _, raw = await answer
    assert raw.endswith(sse.DONE)
    assert b"error" not in raw
    assert await gateway.process.wait() == 0
    assert await neuron.stop() == 0


async def test_a_held_request_gets_its_503_at_sigterm(fleet: Any) -> None:
    neuron = await fleet.neuron()
    model = "echo/cold?load_s=30"
    gateway = await fleet.gateway(neuron, models=catalogue(model))
    held = asyncio.create_task(gateway.post(CHAT, ask(model)))
    await neuron.until("/models", lambda models: models and models[0]["status"] == "loading")
    gateway.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(3):
        status, headers, raw = await held
    assert (status, json.loads(raw)["error"]["code"]) == (503, "shutting_down")
    assert b"retry-after" in headers


async def test_nothing_of_a_killed_neuron_stays_behind(fleet: Any) -> None:
    neuron = await fleet.neuron()
    status, _, raw = await neuron.post(
        "/models/load", {"model_id": "echo/small", "harness": "echo"}
    )
    assert status == 200, raw
    hosts = children(neuron.pid)
    assert hosts
    neuron.process.kill()
    await neuron.process.wait()
    async with asyncio.timeout(5):
        while any(Path(f"/proc/{pid}").exists() for pid in hosts):
            await asyncio.sleep(0.02)


async def test_the_neuron_says_what_it_found_without_a_driver(fleet: Any) -> None:
    neuron = await fleet.neuron(config='[[harnesses]]\nname = "vllm"\n[[harnesses]]\nname="echo"\n')
    found = await neuron.get("/discovery")
    assert set(found["harnesses"]) == {"vllm", "echo"}
    if found["driver_version"] is None:
        assert [device["uuid"] for device in found["devices"]] == ["cpu"]
    assert "libtorch" not in Path(f"/proc/{neuron.pid}/maps").read_text()


async def test_a_gateway_without_catalogue_and_neurons_starts_and_says_so(fleet: Any) -> None:
    gateway = await fleet.gateway()
    assert (await gateway.get("/v1/models"))["data"] == []
    assert (await gateway.get("/health"))["nodes"] == {"healthy": 0, "total": 0}
    assert "anyone" in gateway.log


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found
