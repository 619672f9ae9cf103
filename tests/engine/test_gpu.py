# SPDX-License-Identifier: GPL-3.0-or-later
"""What only a GPU can show: memory that is really taken and given back, sleep, two models on one device.

Without one these say 'not run'. Figures that were seen are kept in docs/measurements.md.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from neuron import demo
from neuron.config import Config, HarnessSettings, VllmSettings
from neuron.nvml import Nvml
from neuron.testing import Served, serve

DEMO = "helexa/demo"
CHAT = "/v1/chat/completions"
ASKED = {
    "messages": [{"role": "user", "content": "Which port does the gateway use?"}],
    "temperature": 0,
}
KV_CACHE_MB = 1024


def has_gpu() -> bool:
    return bool(Nvml().driver().devices)


pytestmark = pytest.mark.skipif(not has_gpu(), reason="not run: there is no NVIDIA GPU here")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "other").symlink_to(demo.path())
    vllm = VllmSettings(
        platform="cuda", model_dirs=[str(tmp_path)], kv_cache_mb=KV_CACHE_MB, warm_spare=False
    )
    async with serve(Config(harness=HarnessSettings(vllm=vllm)), Nvml()) as made:
        yield made


async def load(served: Served, model_id: str = DEMO) -> None:
    status, answer, _ = await served.post("/models/load", {"model_id": model_id})
    assert status == 200, answer


async def ask(served: Served, model_id: str = DEMO) -> str:
    status, answer, _ = await served.post(CHAT, {"model": model_id, **ASKED})
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


async def free_mb(served: Served) -> int:
    """Of the first device, read now."""
    await served.daemon.measuring.measure()
    return served.daemon.measuring.devices()[0].vram_free_mb or 0


async def test_a_load_takes_memory_and_an_unload_gives_it_back(served: Served) -> None:
    before_mb = await free_mb(served)
    await load(served)
    assert await ask(served) == "The gateway listens on port 31313."
    assert before_mb - await free_mb(served) >= KV_CACHE_MB
    await served.post("/models/unload", {"model_id": DEMO})
    assert abs(before_mb - await free_mb(served)) < 64


@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleeping_model_frees_its_memory_and_answers_as_before(
    served: Served, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if level == 2:  # as on a host without memory to spare
        monkeypatch.setattr("neuron.harnesses.ladder.HOST_RESERVE_MB", 1 << 40)
    await load(served)
    said, awake_mb = await ask(served), await free_mb(served)
    status, answer, _ = await served.post("/models/sleep", {"model_id": DEMO})
    assert (status, answer["status"]) == (200, "sleeping")
    assert await free_mb(served) - awake_mb >= KV_CACHE_MB * 0.9
    status, answer, _ = await served.post("/models/wake", {"model_id": DEMO})
    assert (status, answer["status"]) == (200, "loaded")
    assert await ask(served) == said
    (state,) = await served.get("/models")
    assert state["wake_s"] < state["load_s"]


async def test_two_models_share_a_gpu(served: Served) -> None:
    await asyncio.gather(load(served), load(served, "org/other"))
    said = await asyncio.gather(ask(served), ask(served, "org/other"))
    assert set(said) == {"The gateway listens on port 31313."}
