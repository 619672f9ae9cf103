# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cortex_core.node import DeviceHealth
from neuron.discovery import Driver, GpuReading
from neuron.testing import FakeGpus, Served, make_config, make_gpu, serve


@pytest.fixture
async def with_gpu() -> AsyncIterator[Served]:
    health = DeviceHealth(index=0, vram_used_mb=1000, vram_free_mb=23_000, temp_c=40.0)
    driver = Driver(driver_version="580.1", cuda_version="13.0", devices=[make_gpu()])
    gpus = FakeGpus(driver, [GpuReading(health, {})])
    async with serve(make_config(), gpus) as made:
        await made.daemon.measuring.measure()
        yield made


async def test_discovery_tells_of_machine_devices_and_harnesses(with_gpu: Served) -> None:
    found = await with_gpu.get("/discovery")
    assert found["hostname"]
    assert found["harnesses"] == ["echo"]
    assert (found["driver_version"], found["cuda_version"]) == ("580.1", "13.0")
    assert [device["uuid"] for device in found["devices"]] == ["GPU-0"]
    assert found["host_ram_mb"] > 0
    assert found["version"]


async def test_health_tells_of_devices_and_models(with_gpu: Served) -> None:
    health = await with_gpu.get("/health")
    assert health["uptime_secs"] >= 0
    assert health["host_ram_free_mb"] > 0
    (device,) = health["devices"]
    assert (device["vram_used_mb"], device["temp_c"], device["power_w"]) == (1000, 40.0, None)
    assert health["activation"]["state"] == "ready"
    assert health["models"] == []


async def test_version_is_never_empty(served: Served) -> None:
    version = await served.get("/version")
    assert version["packages"]["helexa-neuron"]
    assert version["git_sha"]
    assert version["python"]


@pytest.mark.slow
async def test_a_load_is_seen_everywhere(served: Served) -> None:
    answer = await served.load("echo/m?context=100&max_running=2")
    assert answer == {"status": "loaded", "model_id": "echo/m?context=100&max_running=2"}
    answer = await served.load("echo/m?context=100&max_running=2")
    assert answer["already"] is True
    (model,) = await served.get("/models")
    assert (model["status"], model["harness"], model["capabilities"]) == (
        "loaded",
        "echo",
        ["text"],
    )
    assert (model["limits"]["context"], model["can_sleep"]) == (100, True)
    assert model["load_s"] > 0
    health = await served.get("/health")
    assert (health["models"][0]["max_running"], health["models"][0]["running"]) == (2, 0)
    (entry,) = (await served.get("/v1/models"))["data"]
    assert (entry["id"], entry["object"], entry["loaded"]) == (model["id"], "model", True)
    assert (entry["max_model_len"], entry["residency"]) == (100, "serving")
    assert abs(entry["created"] - time.time()) < 60


@pytest.mark.slow
async def test_a_load_may_be_left_to_go_on(served: Served) -> None:
    body = {"model_id": "echo/m?load_s=0.2", "harness": "echo", "wait": False}
    status, answer, _ = await served.post("/models/load", body)
    assert (status, answer["status"]) == (202, "loading")
    assert answer["progress"]["phase"] in ("waiting", "starting")
    (model,) = await served.until("/models", lambda models: models[0]["status"] == "loaded")
    assert model["progress"] is None
    status, answer, _ = await served.post("/models/load", body)
    assert (status, answer["status"], answer["already"]) == (200, "loaded", True)


@pytest.mark.slow
async def test_an_endpoint_is_this_daemon_as_the_asker_calls_it(served: Served) -> None:
    await served.load("echo/org/m")
    assert await served.get("/models/echo/org/m/endpoint") == {"url": served.endpoint}
    status, answer, _ = await _ask(served, "GET", "/models/echo/none/endpoint")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


@pytest.mark.slow
async def test_a_reload_is_another_process_of_the_same_spec_and_begins_the_count_anew(
    served: Served,
) -> None:
    await served.load("echo/m", max_model_len=77)
    await served.load("echo/other")
    await served.post("/models/unload", {"model_id": "echo/other"})
    await served.post("/models/sleep", {"model_id": "echo/m"})
    await served.post("/models/wake", {"model_id": "echo/m"})
    assert (await served.get("/health"))["cycles"] == 2
    pids = served.host_pids
    status, answer, _ = await served.post("/models/reload", {"model_id": "echo/m"})
    assert (status, answer) == (200, {"status": "loaded", "model_id": "echo/m"})
    assert not set(pids) & set(served.host_pids)
    assert (await served.get("/health"))["cycles"] == 0
    (model,) = await served.get("/models")
    assert model["status"] == "loaded"
    assert (await served.load("echo/m", max_model_len=77))["already"] is True


@pytest.mark.slow
async def test_a_reload_goes_on_though_who_asked_for_it_leaves(served: Served) -> None:
    await served.load("echo/m?load_s=0.2")
    pids = served.host_pids
    body = {"model_id": "echo/m?load_s=0.2"}
    asking = asyncio.create_task(served.post("/models/reload", body))
    await served.until("/models", lambda models: not models or models[0]["status"] != "loaded")
    asking.cancel()
    await served.until("/models", lambda models: models and models[0]["status"] == "loaded")
    assert not set(pids) & set(served.host_pids)


@pytest.mark.slow
async def test_what_does_not_serve_is_not_reloaded(served: Served) -> None:
    status, answer, _ = await served.post("/models/reload", {"model_id": "echo/none"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    await served.load("echo/m")
    await served.post("/models/sleep", {"model_id": "echo/m"})
    status, answer, _ = await served.post("/models/reload", {"model_id": "echo/m"})
    assert (status, answer["status"], answer["already"]) == (200, "sleeping", True)


@pytest.mark.slow
async def test_an_unload_says_whether_there_was_anything(served: Served) -> None:
    await served.load("echo/m")
    for already in (False, True):
        status, answer, _ = await served.post("/models/unload", {"model_id": "echo/m"})
        assert (status, answer["status"], answer.get("already", False)) == (
            200,
            "unloaded",
            already,
        )
    assert await served.get("/models") == []


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "told"),
    [
        ("/models/load", b"{", 400, "malformed_json", "Input data was truncated"),
        ("/models/load", b"\xff", 400, "malformed_json", "invalid character (byte 0)"),
        (
            "/models/load",
            b"[" * 9000 + b"]" * 9000,
            400,
            "invalid_request_body",
            "Expected `object`, got `array`",
        ),
        (
            "/models/load",
            b'{"lora":{"a":' + b"[" * 9000 + b"]" * 9000 + b"}}",
            400,
            "invalid_request_body",
            "Expected `str`, got `array` - at `$.lora[...]`",
        ),
        (
            "/models/load",
            b'{"engine_args":{"a":' + b"[" * 9000 + b"]" * 9000 + b"}}",
            400,
            "malformed_json",
            "it is nested too deeply",
        ),
        ("/models/load", {}, 400, "invalid_request_body", "missing required field `model_id`"),
        (
            "/models/load",
            {"model_id": 3},
            400,
            "invalid_request_body",
            "Expected `str`, got `int` - at `$.model_id`",
        ),
        (
            "/models/load",
            {"model_id": "a", "quantt": "x"},
            400,
            "invalid_request_body",
            "unknown field `quantt`",
        ),
        (
            "/models/load",
            {"model_id": "a", "harness": "llama"},
            422,
            "unknown_harness",
            "there is no harness 'llama' here. Known are: echo.",
        ),
        (
            "/models/load",
            {"model_id": "", "harness": "echo"},
            422,
            "invalid_spec",
            "a model_id is 1 to 512 characters that can be printed. Correct the spec.",
        ),
        (
            "/models/load",
            {"model_id": "echo/m?x=1", "harness": "echo"},
            422,
            "invalid_spec",
            "unknown field `x`. Options are tokens, ",
        ),
        ("/models/unload", {"model": "a"}, 400, "invalid_request_body", "unknown field `model`"),
        ("/models/sleep", {"model_id": "a"}, 404, "model_not_found", "'a' is not served here"),
        ("/models/sleep", {"model": "a"}, 400, "invalid_request_body", "unknown field `model`"),
        ("/models/wake", {"model_id": "a"}, 404, "model_not_found", "'a' is not served here"),
        (
            "/models/nap",
            {"model_id": "a"},
            404,
            "route_not_found",
            "There is no route POST /models/nap here.",
        ),
        (
            "/discovery",
            {},
            405,
            "method_not_allowed",
            "/discovery does not take POST; it takes GET, HEAD.",
        ),
    ],
)
async def test_what_is_asked_wrongly_is_said_clearly(
    served: Served, path: str, body: Any, status: int, code: str, told: str
) -> None:
    got, answer, headers = await served.post(path, body)
    assert (got, answer["error"]["code"]) == (status, code)
    assert told in answer["error"]["message"]
    assert headers[b"x-request-id"]
    assert b"retry-after" not in headers


async def test_an_unknown_harness_names_the_known_ones(served: Served) -> None:
    _, answer, _ = await served.post("/models/load", {"model_id": "a", "harness": "llama"})
    assert answer["error"]["suggestion"] == "Known are: echo."


@pytest.mark.slow
async def test_the_control_plane_never_waits_for_an_engine(served: Served) -> None:
    await served.load("echo/m")
    (pid,) = served.host_pids
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(0.5):
            for path in ("/health", "/models", "/discovery", "/v1/models", "/version"):
                await served.get(path)
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_daemon_that_closes_takes_no_loads(served: Served) -> None:
    served.daemon.front.close()
    body = {"model_id": "echo/m", "harness": "echo"}
    status, answer, headers = await served.post("/models/load", body)
    assert (status, answer["error"]["code"]) == (503, "shutting_down")
    assert headers[b"retry-after"] == b"15"
    assert await served.get("/models") == []


async def _ask(served: Served, method: str, path: str) -> tuple[int, Any, Any]:
    from cortex_core.http.client import RefusedError

    try:
        return 200, await served.client.ask(method, path, object), {}
    except RefusedError as error:
        return error.status, {"error": error.facts}, {}
