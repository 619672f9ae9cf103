# SPDX-License-Identifier: GPL-3.0-or-later
"""A daemon on a machine with GPUs, as far as its driver says (`neuron.fake_nvml`)."""

import json
from typing import Any

import pytest

from cortex_core.http.client import read_all
from neuron.fake_nvml import TWO_GPUS, FakeNvml

pytestmark = pytest.mark.slow

# The engine's environment is not needed: nothing gets as far as a start.
CONFIG = '[[harnesses]]\nname = "vllm"\n[harness.vllm]\nwarm_spare = false\ndownload = false\n'
DEFAULT = '[[default_models]]\nmodel_id = "helexa/demo"\n'


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return FakeNvml(tmp_path_factory.mktemp("nvml"))


async def series(neuron: Any, name: str) -> dict[str, float]:
    """The values of one device metric, by its labels."""
    async with neuron.client.open("GET", "/metrics") as reply:
        lines = (await read_all(reply)).decode().splitlines()
    rows = (line.split() for line in lines if line.startswith(f"{name}{{"))
    return {labels.removeprefix(name): float(value) for labels, value in rows}


async def test_gpus_are_found_watched_and_planned_for(fleet: Any, driver: FakeNvml) -> None:
    driver.say(TWO_GPUS)
    neuron = await fleet.neuron(config=CONFIG, **driver.environ())
    found = await neuron.get("/discovery")
    assert (found["driver_version"], found["cuda_version"]) == ("580.95.05", "13.0")
    assert [(d["index"], d["uuid"], d["vram_total_mb"]) for d in found["devices"]] == [
        (0, "GPU-aaaa", 32607),
        (1, "GPU-bbbb", 12288),
    ]
    health = await neuron.until("/health", lambda health: len(health["devices"]) == 2)
    assert [device["temp_c"] for device in health["devices"]] == [41.0, None]
    assert await series(neuron, "neuron_device_vram_free_mb") == {
        '{device="0"}': 32000.0,
        '{device="1"}': 12000.0,
    }
    assert await series(neuron, "neuron_device_temperature_celsius") == {'{device="0"}': 41.0}

    driver.say({**TWO_GPUS, "0.lost": "1"})
    health = await neuron.until(
        "/health", lambda health: health["devices"][0]["vram_used_mb"] is None
    )
    assert health["devices"][1]["vram_free_mb"] == 12000
    assert await series(neuron, "neuron_device_vram_free_mb") == {'{device="1"}': 12000.0}
    assert "GPU lost" in neuron.log
    _, _, raw = await neuron.post("/models/plan", {"model_id": "helexa/demo"})
    plan = json.loads(raw)
    assert plan["fits"]
    assert [device["index"] for device in plan["devices"]] == [1]

    asked = {"model_id": "helexa/demo", "kv_cache_mb": 20_000}
    status, _, raw = await neuron.post("/models/load", asked)
    error = json.loads(raw)["error"]
    assert (status, error["code"]) == (422, "insufficient_vram")
    assert error["devices"][0]["free_mb"] == 12000
    assert await neuron.stop() == 0


async def test_a_driver_of_two_versions_fails_loads_with_that_reason(
    fleet: Any, driver: FakeNvml
) -> None:
    driver.say({"init": "!18", "nvml": "13.580.95.05"})
    neuron = await fleet.neuron(config=CONFIG + DEFAULT, **driver.environ())
    found = await neuron.get("/discovery")
    assert found["devices"] == []
    assert "library is version 580.95.05 and its kernel module" in found["cuda_unavailable_reason"]
    assert "no GPU can be used" in neuron.log
    health = await neuron.until("/health", lambda h: h["activation"]["state"] == "ready")
    (failed,) = health["activation"]["failed"]
    assert failed["model_id"] == "helexa/demo"
    assert found["cuda_unavailable_reason"] in failed["error"]
    status, _, raw = await neuron.post("/models/load", {"model_id": "helexa/demo"})
    error = json.loads(raw)["error"]
    assert (status, error["code"], error["load_kind"]) == (502, "load_failed", "cuda_unavailable")
    assert found["cuda_unavailable_reason"] in error["message"]
