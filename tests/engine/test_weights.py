# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that is nowhere on the machine: fetched from a hub, loaded by the real engine, asked; then without the hub."""

from pathlib import Path
from typing import Any

import pytest

from neuron import demo
from neuron.config import Config, HarnessSettings, SourceSettings, VllmSettings
from neuron.testing import Served, serve
from neuron.weights.testing import FakeHub, Fault, open_hub

REPO = "org/demo-copy"
WEIGHTS = "model.safetensors"
PROMPT = {"role": "user", "content": "What is cortex?"}


def make_config(endpoint: str, cache: Path) -> Config:
    source = SourceSettings(endpoint=endpoint, cache_dir=str(cache))
    vllm = VllmSettings(
        sources={"hub": source}, default_source="hub", kv_cache_mb=64, warm_spare=False
    )
    return Config(harness=HarnessSettings(vllm=vllm))


async def ask(served: Served, model_id: str) -> str:
    body = {"model": model_id, "temperature": 0, "max_tokens": 20, "messages": [PROMPT]}
    status, answer, _ = await served.post("/v1/chat/completions", body)
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    return str(message.get("content") or message.get("reasoning_content"))


async def load(served: Served, model_id: str) -> Any:
    status, answer, _ = await served.post("/models/load", {"model_id": model_id})
    assert status == 200, answer
    return answer


async def test_a_model_that_is_nowhere_is_fetched_loaded_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fleet: Any
) -> None:
    # Engines that other tests run in this process have set it.
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    async with open_hub() as (hub, endpoint):
        hub.repos[REPO] = read_demo()
        hub.faults = [Fault(path=WEIGHTS, method="GET", cut_after=1_000_000)]
        config = make_config(endpoint, tmp_path / "hub")
        async with serve(config) as served:
            await load(served, REPO)
            said = await ask(served, REPO)
            await served.post("/models/unload", {"model_id": REPO})
        assert gone_on_with(hub) == 1
    # The hub is gone. A gateway has it loaded from there all the same, and clients call it by its bare name.
    catalogue = f'[[models]]\nid = "{REPO}"\nsource = "hub"\n'
    async with serve(config) as served:
        gateway = await fleet.gateway(served.endpoint, models=catalogue)
        answer = await gateway.chat(REPO, PROMPT["content"], temperature=0, max_tokens=20)
        (resident,) = await served.get("/models")
        assert resident["id"] == f"hub:{REPO}"
        message = answer["choices"][0]["message"]
        assert (message.get("content") or message.get("reasoning_content")) == said


def read_demo() -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in demo.path().iterdir() if p.is_file()}


def gone_on_with(hub: FakeHub) -> int:
    """How often the weights were gone on with."""
    return sum(a.start > 0 for a in hub.asked if a.path.endswith(WEIGHTS))
