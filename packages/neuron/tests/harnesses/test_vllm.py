# SPDX-License-Identifier: GPL-3.0-or-later
"""How vLLM engines are started, without starting one."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.errors import LoadFailedError, LoadRefusedError
from cortex_core.node import DeviceHealth
from neuron import demo
from neuron.config import Config, HarnessSettings, VllmSettings
from neuron.discovery import Driver, GpuReading
from neuron.harnesses.run import Launch
from neuron.harnesses.vllm import VllmHarness, _cache_home, plan_environment
from neuron.testing import FakeGpus, make_gpu, serve

DEMO = ModelSpec(model_id="helexa/demo")
COMPILED = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}


@asynccontextmanager
async def harness(gpus: FakeGpus | None = None, **settings: Any) -> AsyncIterator[VllmHarness]:
    config = Config(harness=HarnessSettings(vllm=VllmSettings(download=False, **settings)))
    async with serve(config, gpus) as served:
        made = served.daemon.harnesses["vllm"]
        assert isinstance(made, VllmHarness)
        yield made


async def plan(spec: ModelSpec, gpus: FakeGpus | None = None, **settings: Any) -> Launch:
    async with harness(gpus, **settings) as made:
        # What it raises is raised outside: a task group would wrap it.
        (launch,) = await asyncio.gather(made.plan_launch(spec), return_exceptions=True)
    if isinstance(launch, BaseException):
        raise launch
    return launch


def gpus_with(*free_mb: int, **uuids: str) -> FakeGpus:
    """GPUs of 24,000 MiB; `g0="MIG-…"` calls one otherwise."""
    devices = [make_gpu(index) for index in range(len(free_mb))]
    named = [
        Device(index=d.index, uuid=uuids.get(f"g{d.index}", d.uuid), name="G", vram_total_mb=24_000)
        for d in devices
    ]
    readings = [
        GpuReading(DeviceHealth(index=i, vram_used_mb=24_000 - free, vram_free_mb=free), {})
        for i, free in enumerate(free_mb)
    ]
    return FakeGpus(Driver(driver_version="580", devices=named), readings)


async def test_on_the_cpu_it_takes_a_part_of_the_budget() -> None:
    launch = await plan(DEMO, kv_cache_mb=64)
    assert launch.python == sys.executable
    assert launch.model_path == str(demo.path())
    assert launch.devices == [0]
    assert launch.claims_mb == {0: 64 + launch.weights_mb}
    assert launch.settings["platform"] == "cpu"
    assert launch.settings["kv_cache_mb"] == 64
    assert launch.settings["max_model_len"] is None
    assert launch.settings["gpu_memory_utilization"] is None
    assert "CUDA_VISIBLE_DEVICES" not in launch.environ


async def test_on_gpus_it_sees_those_that_it_gets_and_claims_its_share() -> None:
    launch = await plan(DEMO, gpus_with(10, 20_000), python="/engine/bin/python", max_model_len=512)
    assert launch.python == "/engine/bin/python"
    assert launch.devices == [1]
    # 16 requests of 512 tokens and a block, of 2 KiB each.
    assert launch.settings["kv_cache_mb"] == 17
    # Weights, workspace and process beside the cache.
    assert launch.claims_mb == {1: 17 + 3 + 22 + 1536}
    assert launch.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert launch.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert launch.settings["platform"] == "cuda"
    assert launch.settings["max_model_len"] == 512
    assert launch.settings["gpu_memory_utilization"] == round((1578 - 512) / 24_000, 4)


async def test_a_context_that_does_not_fit_the_cache_is_lowered_to_what_does() -> None:
    launch = await plan(DEMO, kv_cache_mb=4)
    assert launch.settings["max_model_len"] == 1920


async def test_a_mig_instance_is_named_by_its_uuid() -> None:
    launch = await plan(DEMO, gpus_with(20_000, g0="MIG-one"))
    assert launch.environ["CUDA_VISIBLE_DEVICES"] == "MIG-one"


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (Driver(unavailable_reason="version mismatch"), "no GPU can be used: version mismatch."),
        (Driver(), "no GPU can be used: `platform` is cuda, and there is no NVIDIA GPU."),
    ],
)
async def test_a_broken_driver_is_told_and_not_hidden_by_the_cpu(
    driver: Driver, reason: str
) -> None:
    with pytest.raises(LoadFailedError) as caught:
        await plan(DEMO, FakeGpus(driver), platform="cuda")
    assert caught.value.facts["load_kind"] == "cuda_unavailable"
    assert caught.value.facts["reason"] == reason


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"model_id": "nobody/knows"}, "repo_fetch_failed", "nobody/knows"),
        ({"engine_args": {"trust_remote_code": True}}, "invalid_spec", "trust_remote_code"),
        ({"tensor_parallel": 3}, "tp_infeasible", "tensor_parallel 1, 2, 4"),
        ({"kv_cache_mb": 99_000}, "insufficient_vram", r"which has 4096 MiB free of 4096\."),
        ({"kv_cache_mb": 1, "max_model_len": 512}, "insufficient_vram", "max_model_len to 384"),
        ({"devices": [3]}, "invalid_spec", "There are: 0"),
    ],
)
async def test_what_files_and_spec_tell_is_told_before_any_start(
    fields: dict[str, Any], kind: str, message: str
) -> None:
    with pytest.raises(LoadRefusedError, match=message) as caught:
        await plan(ModelSpec(**{"model_id": "helexa/demo", **fields}))
    assert caught.value.facts["load_kind"] == kind


@pytest.mark.parametrize(
    ("repo", "kind", "reason", "is_planned"),
    [
        ("/etc", "invalid_spec", "the id is not written as `org/name` or `scheme:org/name`", False),
        ("nobody/knows", "repo_fetch_failed", "its files are not on this machine", True),
    ],
)
async def test_what_is_wrong_with_an_adapter_is_told_of_it_and_not_of_its_model(
    repo: str, kind: str, reason: str, is_planned: bool
) -> None:
    spec = ModelSpec(model_id="helexa/demo", lora={"mine": repo})
    told = f"The model 'helexa/demo' cannot be loaded: its adapter 'mine' ({repo}): {reason}"
    with pytest.raises(LoadRefusedError, match=re.escape(told)) as caught:
        await plan(spec)
    assert caught.value.facts["load_kind"] == kind
    async with harness() as made:
        answer = await made.plan(spec)
    # A load might fetch what is not here.
    assert (answer.fits, answer.kind) == (is_planned, None if is_planned else kind)


def copy_demo(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in demo.path().iterdir():
        if file.suffix in (".json", ".jinja", ".safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


async def test_a_cut_file_is_told_before_any_start(tmp_path: Path) -> None:
    weights = copy_demo(tmp_path / "org/cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(LoadRefusedError) as caught:
        await plan(ModelSpec(model_id="org/cut"), model_dirs=[str(tmp_path)])
    assert caught.value.facts["load_kind"] == "corrupt_weights"


async def test_a_config_that_names_no_model_is_told_before_any_start(tmp_path: Path) -> None:
    config = copy_demo(tmp_path / "org/odd") / "config.json"
    config.write_text(json.dumps({"hidden_size": 128}))
    with pytest.raises(LoadRefusedError, match="neither an architecture") as caught:
        await plan(ModelSpec(model_id="org/odd"), model_dirs=[str(tmp_path)])
    assert caught.value.facts["load_kind"] == "unsupported_architecture"


async def test_a_model_whose_cache_is_not_understood_leaves_its_context_to_vllm(
    tmp_path: Path,
) -> None:
    config = copy_demo(tmp_path / "org/mixed") / "config.json"
    mixed = {**json.loads(config.read_text()), "layer_types": ["sliding_attention"] * 4}
    config.write_text(json.dumps(mixed))
    launch = await plan(ModelSpec(model_id="org/mixed"), model_dirs=[str(tmp_path)])
    assert launch.settings["max_model_len"] == -1


async def test_two_loads_at_once_do_not_get_the_same_memory() -> None:
    """The claims of the first are noted without a pause, as `Life` does, and the second is decided after that."""
    async with harness(gpus_with(3000)) as made:

        async def load(model_id: str) -> bool:
            spec = ModelSpec(model_id=model_id, kv_cache_mb=500)
            made._residents.note_load(spec, 0.0)
            try:
                launch = await made.plan_launch(spec)
            except LoadRefusedError:
                return False
            made._residents.note_place(model_id, launch.devices, launch.claims_mb)
            return True

        # Two names of one model, so that both have files.
        assert sorted(
            await asyncio.gather(load("helexa/demo"), load("huggingface:helexa/demo"))
        ) == [False, True]


async def test_what_is_compiled_is_kept_where_neuron_toml_says(tmp_path: Path) -> None:
    launch = await plan(DEMO, compile_cache_dir=str(tmp_path))
    assert {name: launch.environ[name] for name in COMPILED} == {
        name: str(tmp_path / folder) for name, folder in COMPILED.items()
    }
    assert launch.spare is not None
    assert {name: launch.spare.environ[name] for name in COMPILED} == {
        name: launch.environ[name] for name in COMPILED
    }, "a spare cannot be told later"


@pytest.mark.parametrize(
    ("environ", "home"),
    [
        ({"CACHE_DIRECTORY": "/var/cache/neuron", "XDG_CACHE_HOME": "/x"}, "/var/cache/neuron"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/neuron"),
        ({}, "~/.cache/neuron"),
    ],
)
def test_what_is_compiled_is_kept_over_restarts(environ: dict[str, str], home: str) -> None:
    assert _cache_home(environ) == home


def test_nothing_is_sent_home_and_nothing_is_looked_up(tmp_path: Path) -> None:
    cpu = Device(index=0, uuid="cpu", name="", vram_total_mb=1)
    environ = plan_environment("cpu", tmp_path, [cpu])
    assert environ["DO_NOT_TRACK"] == environ["VLLM_NO_USAGE_STATS"] == "1"
    assert environ["HF_HUB_OFFLINE"] == "1"
    assert environ["VLLM_CPU_KVCACHE_SPACE"] is None


async def test_a_gguf_is_given_to_an_engine_that_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org" / "m-GGUF"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(demo.path() / name)
    (folder / "m-Q4_K_M.gguf").write_bytes(b"x" * 1024)
    (folder / "m-Q8_0.gguf").write_bytes(b"x" * 2048)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")  # it has whatever it is asked for
    python.chmod(0o755)
    spec = ModelSpec(model_id="org/m-GGUF", quant="q8-0")
    settings = {"model_dirs": [str(tmp_path / "models")], "warm_spare": False}
    launch = await plan(spec, gpus_with(20_000), python=str(python), **settings)
    assert (launch.model_path, launch.settings["gguf"]) == (str(folder), "m-Q8_0.gguf")
    async with harness(gpus_with(20_000), **settings) as without:
        answer = await without.plan(spec)
        assert (answer.fits, answer.kind) == (False, "unsupported_architecture")
        assert "install vllm-gguf-plugin" in (answer.suggestion or "")
