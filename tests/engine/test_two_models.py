# SPDX-License-Identifier: GPL-3.0-or-later
"""Two models on one device: loaded together, and one unloaded while the other streams."""

import asyncio
from pathlib import Path

import msgspec

from neuron import demo
from neuron.config import Config, HarnessSettings, VllmSettings
from neuron.testing import Served, serve

IDS = ("org/one", "org/other")


async def stream(served: Served, model_id: str, begun: asyncio.Event) -> bytes:
    body = {
        "model": model_id,
        "messages": [{"role": "user", "content": "Which port does the gateway use?"}],
        "stream": True,
        "max_tokens": 600,
        "ignore_eos": True,
    }
    parts = []
    path, data = "/v1/chat/completions", msgspec.json.encode(body)
    async with served.client.open("POST", path, body=data) as reply:
        while part := await reply.read():
            parts.append(part)
            begun.set()
    return b"".join(parts)


async def load(served: Served, model_id: str) -> int:
    status, _, _ = await served.post("/models/load", {"model_id": model_id})
    return status


async def test_one_model_goes_and_the_other_streams_on(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    for model_id in IDS:
        (tmp_path / model_id).symlink_to(demo.path())
    vllm = VllmSettings(model_dirs=[str(tmp_path)], kv_cache_mb=64, warm_spare=False)
    async with serve(Config(harness=HarnessSettings(vllm=vllm))) as served:
        assert await asyncio.gather(*(load(served, model_id) for model_id in IDS)) == [200, 200]
        (device,) = (await served.get("/health"))["devices"]
        used_mb = device["vram_used_mb"]
        begun = asyncio.Event()
        streaming = asyncio.create_task(stream(served, IDS[0], begun))
        await begun.wait()
        status, answer, _ = await served.post("/models/unload", {"model_id": IDS[1]})
        assert (status, answer["status"]) == (200, "unloaded")
        assert not streaming.done()
        (device,) = (await served.get("/health"))["devices"]
        assert device["vram_used_mb"] == used_mb / 2
        streamed = await streaming
        assert streamed.endswith(b"data: [DONE]\n\n")
        assert b'"finish_reason":"length"' in streamed
        assert b'"error"' not in streamed
