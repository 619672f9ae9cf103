# SPDX-License-Identifier: GPL-3.0-or-later
"""How vLLM engines are started, without starting one."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.errors import LoadRefusedError
from cortex_core.node import DeviceHealth
from neuron import demo
from neuron.config import Config, HarnessSettings, VllmSettings
from neuron.discovery import Driver, GpuReading
from neuron.harnesses.hosted import Hosted
from neuron.harnesses.run import Launch
from neuron.harnesses.vllm import plan_environment
from neuron.testing import FakeGpus, make_gpu, serve

DEMO = ModelSpec(model_id="helexa/demo")


@asynccontextmanager
async def harness(gpus: FakeGpus | None = None, **settings: Any) -> AsyncIterator[Hosted]:
    config = Config(harness=HarnessSettings(vllm=VllmSettings(**settings)))
    async with serve(config, gpus) as served:
        await served.daemon.measuring.measure()
        yield served.daemon.harnesses["vllm"]


async def plan(spec: ModelSpec, gpus: FakeGpus | None = None, **settings: Any) -> Launch:
    async with harness(gpus, **settings) as made:
        # What it raises is raised outside: a task group would wrap it.
        (launch,) = await asyncio.gather(made.plan_launch(spec), return_exceptions=True)
    if isinstance(launch, BaseException):
        raise launch
    return launch


def two_gpus() -> FakeGpus:
    readings = [
        GpuReading(DeviceHealth(index=i, vram_free_mb=free), {})
        for i, free in enumerate([10, 20_000])
    ]
    return FakeGpus(Driver(driver_version="580", devices=[make_gpu(0), make_gpu(1)]), readings)


async def test_on_the_cpu_it_takes_a_part_of_the_budget() -> None:
    launch = await plan(DEMO, kv_cache_mb=64)
    assert launch.python == sys.executable
    assert launch.model_path == str(demo.path())
    assert launch.devices == [0]
    assert 64 < launch.claims_mb[0] < 80
    assert launch.settings == {
        "platform": "cpu",
        "kv_cache_mb": 64,
        "max_model_len": None,
        "gpu_memory_utilization": None,
    }
    assert "CUDA_VISIBLE_DEVICES" not in launch.environ


async def test_on_gpus_it_sees_those_that_it_gets_and_claims_its_share() -> None:
    launch = await plan(DEMO, two_gpus(), python="/engine/bin/python", max_model_len=512)
    assert launch.python == "/engine/bin/python"
    assert launch.devices == [1]
    assert launch.claims_mb == {}
    assert launch.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert launch.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert launch.settings["platform"] == "cuda"
    assert launch.settings["kv_cache_mb"] == 4096
    assert launch.settings["max_model_len"] == 512
    assert 0.2 < launch.settings["gpu_memory_utilization"] < 0.3


async def test_a_broken_driver_is_told_and_not_hidden_by_the_cpu() -> None:
    with pytest.raises(LoadRefusedError, match="no device") as caught:
        await plan(DEMO, FakeGpus(Driver(unavailable_reason="version mismatch")))
    assert "version mismatch" in caught.value.message
    assert caught.value.facts["load_kind"] == "insufficient_vram"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"model_id": "nobody/knows"}, "repo_fetch_failed"),
        ({"model_id": "helexa/demo", "engine_args": {"trust_remote_code": True}}, "invalid_spec"),
    ],
)
async def test_what_files_and_spec_tell_is_told_before_any_start(
    fields: dict[str, Any], kind: str
) -> None:
    with pytest.raises(LoadRefusedError) as caught:
        await plan(ModelSpec(**fields))
    assert caught.value.facts["load_kind"] == kind


async def test_a_cut_file_is_told_before_any_start(tmp_path: Path) -> None:
    folder = tmp_path / "org/cut"
    folder.mkdir(parents=True)
    for file in demo.path().iterdir():
        if file.suffix in (".json", ".jinja"):
            (folder / file.name).write_bytes(file.read_bytes())
    weights = (demo.path() / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1000])
    with pytest.raises(LoadRefusedError) as caught:
        await plan(ModelSpec(model_id="org/cut"), model_dirs=[str(tmp_path)])
    assert caught.value.facts["load_kind"] == "corrupt_weights"


def test_nothing_is_sent_home_and_nothing_is_looked_up() -> None:
    environ = plan_environment("cpu", [Device(index=0, uuid="cpu", name="", vram_total_mb=1)])
    assert environ["DO_NOT_TRACK"] == environ["VLLM_NO_USAGE_STATS"] == "1"
    assert environ["HF_HUB_OFFLINE"] == "1"
    assert environ["VLLM_CPU_KVCACHE_SPACE"] is None
