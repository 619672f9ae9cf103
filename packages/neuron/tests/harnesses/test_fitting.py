# SPDX-License-Identifier: GPL-3.0-or-later
"""POST /models/plan, by a daemon whose driver says what it is told."""

import json
import os
import re
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import neuron
from cortex_core.control import ModelSpec
from cortex_core.node import DeviceHealth
from neuron.config import Config, HarnessEntry, HarnessSettings, VllmSettings
from neuron.discovery import Driver, GpuReading
from neuron.harnesses.run import Launch, Run
from neuron.host.messages import Ready
from neuron.testing import FakeGpus, Served, make_gpu, serve
from neuron.traffic import Link

DEMO = Path(neuron.__file__).parent / "demo"
# Of the demo model on a GPU: weights 3, workspace 22, process 1536 MiB.
FIXED_MB = 1561
# 16 requests of 4096 tokens and a block, of 2 KiB each.
CACHE_MB = 129


class Gpus(FakeGpus):
    """GPUs of 24,000 MiB, of which so much is free."""

    def __init__(self, *free_mb: int) -> None:
        super().__init__(Driver(devices=[make_gpu(index) for index in range(len(free_mb))]))
        self.tell(*free_mb)

    def tell(self, *free_mb: int, processes: dict[int, int] | None = None) -> None:
        self.readings = [
            GpuReading(
                DeviceHealth(index=index, vram_used_mb=24_000 - free, vram_free_mb=free),
                processes or {},
            )
            for index, free in enumerate(free_mb)
        ]


@asynccontextmanager
async def daemon(gpus: FakeGpus, **settings: Any) -> AsyncIterator[Served]:
    config = Config(
        harnesses=[HarnessEntry(name="vllm"), HarnessEntry(name="echo")],
        harness=HarnessSettings(vllm=VllmSettings(download=False, **settings)),
    )
    async with serve(config, gpus) as served:
        yield served


async def plan(served: Served, model_id: str = "helexa/demo", **fields: Any) -> Any:
    status, answer, _ = await served.post("/models/plan", {"model_id": model_id, **fields})
    assert status == 200, answer
    return answer


def bring_up(served: Served, model_id: str, claim_mb: int, used_s: float) -> Link:
    """A model that serves on device 0, as far as its owners know."""
    residents, traffic = served.daemon.residents, served.daemon._traffic
    residents.note_load(ModelSpec(model_id=model_id), 0.0)
    residents.note_place(model_id, [0], {0: claim_mb})
    residents.note_ready(model_id, Ready(), 1.0, 0)
    link = Link("unix:/nowhere")
    link.used_s = used_s
    traffic.note_open(model_id, link)
    return link


async def test_what_fits_is_told_with_all_that_it_would_take() -> None:
    async with daemon(Gpus(20_000, 1000)) as served:
        assert await plan(served) == {
            "model_id": "helexa/demo",
            "fits": True,
            "already": False,
            "source": "estimated",
            "devices": [
                {
                    "index": 0,
                    "needed_mb": FIXED_MB + CACHE_MB,
                    "free_mb": 20_000,
                    "total_mb": 24_000,
                    "short_mb": 0,
                }
            ],
            "kv_cache_mb": CACHE_MB,
            "max_model_len": None,
            "would_evict": [],
            "busy": [],
            "kind": None,
            "reason": None,
            "suggestion": "",
        }
        assert await served.get("/models") == []  # nothing was loaded for it


async def test_what_does_not_fit_says_who_would_have_to_go() -> None:
    async with daemon(Gpus(1000)) as served:
        bring_up(served, "new", 9000, used_s=2.0)
        bring_up(served, "old", 9000, used_s=1.0)
        answer = await plan(served)
        # The least that it could do with: one request of its own length.
        assert (answer["fits"], answer["devices"][0]["short_mb"]) == (False, FIXED_MB + 9 - 1000)
        assert (answer["would_evict"], answer["busy"], answer["kind"]) == (["old"], [], None)
        assert answer["reason"].startswith("it needs 1570 MiB of device 0, which has 1000 MiB free")
        assert "old" in answer["suggestion"]


async def test_busy_models_go_last_and_are_named() -> None:
    async with daemon(Gpus(1000)) as served:
        working = bring_up(served, "works", 9000, used_s=0.0)
        async with working.place("works"):
            bring_up(served, "idle", 100, used_s=5.0)
            answer = await plan(served)
            assert (answer["would_evict"], answer["busy"]) == (["works"], ["works"])


async def test_memory_of_others_is_nobodys_to_give() -> None:
    async with daemon(Gpus(1000)) as served:
        answer = await plan(served)
        assert (answer["fits"], answer["would_evict"], answer["kind"]) == (False, [], None)
        assert (
            answer["suggestion"] == "Free memory on the device, or choose a smaller quantization."
        )


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"kv_cache_mb": 90_000}, "insufficient_vram"),
        ({"tensor_parallel": 4}, "tp_infeasible"),
        ({"tensor_parallel": 3}, "tp_infeasible"),
        ({"devices": [9]}, "invalid_spec"),
        ({"model_id": "nobody/knows"}, "repo_fetch_failed"),
        ({"model_id": "nobody/knows", "vram_mb": 90_000}, "multi_host_unsupported"),
        ({"max_model_len": 0}, "invalid_spec"),
    ],
)
async def test_what_can_never_be_says_so_with_its_kind(fields: dict[str, Any], kind: str) -> None:
    async with daemon(Gpus(20_000, 20_000)) as served:
        answer = await plan(served, **fields)
    assert (answer["fits"], answer["kind"]) == (False, kind)
    assert answer["reason"]
    assert answer["suggestion"]


async def test_what_is_larger_than_a_device_says_by_how_much() -> None:
    async with daemon(Gpus(20_000)) as served:
        answer = await plan(served, kv_cache_mb=90_000)
    assert (answer["kind"], answer["kv_cache_mb"]) == ("insufficient_vram", 90_000)
    (device,) = answer["devices"]
    assert (device["needed_mb"], device["short_mb"]) == (90_000 + FIXED_MB, 70_000 + FIXED_MB)


async def test_what_is_resident_with_another_spec_does_not_fit_until_it_is_unloaded() -> None:
    async with daemon(Gpus(10)) as served:
        bring_up(served, "helexa/demo", 9000, used_s=1.0)
        answer = await plan(served, dtype="float32", max_model_len=8)
    assert (answer["fits"], answer["already"], answer["kind"]) == (False, True, None)
    assert answer["reason"] == (
        "'helexa/demo' is resident with another spec; they differ in max_model_len, dtype"
    )
    assert answer["suggestion"] == "Unload it first."


async def test_what_is_said_of_a_model_counts_where_nothing_else_is_known() -> None:
    async with daemon(Gpus(20_000, 20_000)) as served:
        answer = await plan(served, "nobody/knows", vram_mb=30_001, tensor_parallel=2)
        assert (answer["fits"], answer["source"]) == (True, "given")
        assert [device["needed_mb"] for device in answer["devices"]] == [15_001, 15_001]
        assert answer["kv_cache_mb"] is None
        known = await plan(served, vram_mb=30_000)
        assert known["source"] == "estimated"


async def test_what_was_measured_takes_the_estimates_place() -> None:
    async with daemon(Gpus(20_000)) as served:
        costs = served.daemon.residents.costs
        for model_id in ("helexa/demo", "nobody/knows"):
            costs.note_cache(model_id, 1000)
            costs.note_memory(ModelSpec(model_id=model_id), {0: 3400}, None)
        answer = await plan(served)
        assert (answer["source"], answer["devices"][0]["needed_mb"]) == (
            "measured",
            2400 + CACHE_MB,
        )
        # Its files are not here, and it is known all the same.
        answer = await plan(served, "nobody/knows")
        assert (answer["source"], answer["devices"][0]["needed_mb"]) == ("measured", 3400)
        # Another spec was not measured.
        assert (await plan(served, dtype="float16"))["source"] == "estimated"


def weigh_down(folder: Path, size_mb: int, heads: int = 4) -> None:
    """The demo model's files, which say that it is so large."""
    folder.mkdir(parents=True)
    for file in DEMO.iterdir():
        if file.name != "model.safetensors":
            shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    changed = {"num_attention_heads": heads, "num_key_value_heads": heads}
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    size = size_mb * 1024 * 1024
    header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}})
    with (folder / "model.safetensors").open("wb") as weights:
        weights.write(struct.pack("<Q", len(header)) + header.encode())
        weights.truncate(8 + len(header) + size)  # a hole: it takes no room


async def test_a_model_too_large_for_one_gpu_is_dealt_to_several_alike(tmp_path: Path) -> None:
    weigh_down(tmp_path / "org" / "large", 30_000)
    weigh_down(tmp_path / "org" / "odd", 30_000, heads=3)
    weigh_down(tmp_path / "org" / "huge", 90_000)
    async with daemon(Gpus(23_000, 23_000), model_dirs=[str(tmp_path)]) as served:
        answer = await plan(served, "org/large")
        assert (answer["fits"], [d["index"] for d in answer["devices"]]) == (True, [0, 1])
        assert all(15_000 < device["needed_mb"] < 20_000 for device in answer["devices"])
        launch = await served.daemon.harnesses["vllm"].plan_launch(ModelSpec(model_id="org/large"))
        assert (launch.ranks, launch.devices) == (2, [0, 1])
        assert launch.weights_mb == 31_500
        answer = await plan(served, "org/large", tensor_parallel=1)
        assert (answer["kind"], answer["suggestion"]) == (
            "insufficient_vram",
            "Set tensor_parallel to 2.",
        )
        odd = await plan(served, "org/odd")
        assert odd["kind"] == "tp_infeasible"
        assert re.match(r"it needs 33\d+ MiB of device 0, which has 23000 MiB free", odd["reason"])
        assert odd["suggestion"].startswith(
            "2 devices could hold it, and its attention heads can be dealt to 1 only"
        )
        assert (await plan(served, "org/huge"))["kind"] == "multi_host_unsupported"


async def test_gpus_of_different_size_are_not_joined_unasked(tmp_path: Path) -> None:
    weigh_down(tmp_path / "org" / "large", 30_000)
    gpus = Gpus(23_000, 23_000)
    gpus._driver = Driver(devices=[make_gpu(0), make_gpu(1, 32_000)])
    async with daemon(gpus, model_dirs=[str(tmp_path)]) as served:
        answer = await plan(served, "org/large")
        assert (answer["kind"], answer["suggestion"]) == (
            "insufficient_vram",
            "Set tensor_parallel to 2.",
        )


async def test_a_model_measured_on_several_gpus_needs_them_again() -> None:
    async with daemon(Gpus(20_000, 20_000)) as served:
        costs = served.daemon.residents.costs
        costs.note_cache("nobody/knows", 1000)
        costs.note_memory(ModelSpec(model_id="nobody/knows"), {0: 15_000, 1: 15_000}, None)
        answer = await plan(served, "nobody/knows")
        assert [device["needed_mb"] for device in answer["devices"]] == [15_000, 15_000]


async def test_room_for_adapters_is_part_of_what_a_model_needs() -> None:
    async with daemon(Gpus(20_000)) as served:
        # Their files are not here, so their rank is taken to be 16.
        lora = {str(number): "org/adapter" for number in range(9)}
        answer = await plan(served, lora=lora)
        assert answer["devices"][0]["needed_mb"] == FIXED_MB + 5 + CACHE_MB


async def test_the_cpus_budget_is_the_most_that_engines_are_given() -> None:
    async with daemon(FakeGpus(), cpu_budget_mb=100, warm_spare=False) as served:
        status, answer, _ = await served.post(
            "/models/load", {"model_id": "helexa/demo", "kv_cache_mb": 256}
        )
        error = answer["error"]
        assert (status, error["code"]) == (422, "insufficient_vram")
        assert "it needs 259 MiB of device 0, which has 100 MiB free of 100" in error["message"]
        assert await served.get("/models") == []


async def test_memory_that_an_engine_was_promised_is_not_free() -> None:
    gpus = Gpus(10_000)
    async with daemon(gpus) as served:
        residents = served.daemon.residents
        residents.note_load(ModelSpec(model_id="rising"), 0.0)
        residents.note_place("rising", [0], {0: 9000})
        assert (await plan(served))["devices"][0]["free_mb"] == 1000
        # It has taken a part of it by now, which the driver's figure has: that is not counted again.
        residents.note_host("rising", os.getpgrp())
        gpus.tell(6000, processes={os.getpid(): 4000})
        assert (await plan(served))["devices"][0]["free_mb"] == 1000


async def test_a_model_that_is_up_needs_nothing_more() -> None:
    async with daemon(Gpus(10)) as served:
        bring_up(served, "helexa/demo", 9000, used_s=1.0)
        answer = await plan(served)
        assert (answer["fits"], answer["already"], answer["devices"]) == (True, True, [])


async def test_a_sleeping_model_needs_its_memory_back() -> None:
    gpus = Gpus(5000)
    async with daemon(gpus) as served:
        bring_up(served, "helexa/demo", 9000, used_s=1.0)
        residents = served.daemon.residents
        residents.note_slept("helexa/demo", 2.0)
        residents.note_asleep("helexa/demo")
        run = Run(ModelSpec(model_id="helexa/demo"))
        run.launch = Launch(
            python="",
            claims_mb={0: 9000},
            start_timeout_s=1,
            stop_timeout_s=1,
            heartbeat_timeout_s=1,
        )
        served.daemon.harnesses["vllm"]._shared.runs["helexa/demo"] = run
        bring_up(served, "other", 4500, used_s=1.0)
        answer = await plan(served)
        assert (answer["fits"], answer["already"]) == (False, True)
        assert answer["devices"][0]["short_mb"] == 4000
        assert answer["would_evict"] == ["other"]
        gpus.tell(9000)
        assert (await plan(served))["fits"]
        del served.daemon.harnesses["vllm"]._shared.runs["helexa/demo"]


async def test_a_lost_gpu_is_not_placed_on() -> None:
    gpus = Gpus(20_000, 10_000)
    async with daemon(gpus) as served:
        lost = GpuReading(DeviceHealth(index=0), {}, is_lost=True)
        gpus.readings = [lost, gpus.readings[1]]
        assert [d["index"] for d in (await plan(served))["devices"]] == [1]
        assert (await plan(served, devices=[0]))["kind"] == "insufficient_vram"
        assert (await served.get("/health"))["devices"][0] == {
            "index": 0,
            **dict.fromkeys(
                ["vram_used_mb", "vram_free_mb", "utilization_pct", "temp_c", "power_w"]
            ),
        }


async def test_the_cpu_gives_of_its_budget() -> None:
    async with daemon(FakeGpus(), cpu_budget_mb=600) as served:
        assert (await plan(served))["devices"][0]["needed_mb"] == 3 + 256
        bring_up(served, "other", 400, used_s=1.0)
        answer = await plan(served)
        # What is left is enough for a smaller cache.
        assert (answer["fits"], answer["devices"][0]["needed_mb"]) == (True, 200)
        assert answer["kv_cache_mb"] == 197
        answer = await plan(served, kv_cache_mb=256)
        assert (answer["fits"], answer["would_evict"]) == (False, ["other"])


async def test_an_echo_engine_needs_nothing() -> None:
    async with daemon(Gpus(10)) as served:
        answer = await plan(served, "echo/m", harness="echo")
        assert (answer["fits"], answer["source"], answer["devices"]) == (True, "none", [])
        assert (await plan(served, "echo/m?x=1", harness="echo"))["kind"] == "invalid_spec"
        await served.load("echo/m")
        assert (await plan(served, "echo/m", harness="echo"))["already"]


async def test_a_plan_is_asked_for_as_a_load_is() -> None:
    async with daemon(Gpus(10)) as served:
        for body, status, code in [
            ({"model_id": "a", "harness": "no"}, 422, "unknown_harness"),
            ({"model_id": "a", "quantt": "x"}, 400, "invalid_request_body"),
            (b"{", 400, "malformed_json"),
        ]:
            got, answer, _ = await served.post("/models/plan", body)
            assert (got, answer["error"]["code"]) == (status, code)
