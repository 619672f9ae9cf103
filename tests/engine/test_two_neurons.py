# SPDX-License-Identifier: GPL-3.0-or-later
"""The main path on real vLLM: two neurons behind one gateway, both with the demo model, and one that is killed."""

import asyncio
import json
from typing import Any

from cortex_core import sse
from cortex_core.http.client import read_all
from cortex_core.http.headers import find

DEMO = "helexa/demo"
NEURON = "[harness.vllm]\nwarm_spare = false\nkv_cache_mb = 64\n"
CATALOGUE = f'[[models]]\nid = "{DEMO}"\n'
LONG = {"max_tokens": 900, "ignore_eos": True, "stream": True}


def ask(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    return {"model": DEMO, "messages": messages, "temperature": 0, **fields}


async def stream(gateway: Any, begun: asyncio.Event) -> tuple[str, bytes]:
    """Which node served it, and what came."""
    body, raw = json.dumps(ask(**LONG)).encode(), b""
    async with gateway.client.open("POST", "/v1/chat/completions", body=body) as reply:
        while part := await reply.read():
            raw += part
            begun.set()
    return (find(reply.headers, b"x-cortex-node") or b"").decode(), raw


async def whole(gateway: Any) -> tuple[str, str]:
    """Which node served it, and what it said."""
    body = json.dumps(ask()).encode()
    async with gateway.client.open("POST", "/v1/chat/completions", body=body) as reply:
        raw = await read_all(reply)
    assert reply.status == 200, raw
    answer = json.loads(raw)["choices"][0]["message"]["content"]
    return (find(reply.headers, b"x-cortex-node") or b"").decode(), answer


async def test_two_real_replicas_share_the_work_and_one_takes_over(fleet: Any) -> None:
    neurons = {name: await fleet.neuron(name, NEURON) for name in "ab"}
    gateway = await fleet.gateway(*neurons.values(), models=CATALOGUE)

    # the first request has it loaded, and an operator a second replica
    node, answer = await whole(gateway)
    assert answer == "The capital of France is Paris."
    (other,) = {"a", "b"} - {node}
    status, _, raw = await gateway.post("/fleet/models/load", {"model_id": DEMO, "node": other})
    assert status == 200, raw
    listed = await gateway.get("/v1/models")
    assert [at["node"] for at in listed["data"][0]["locations"]] == ["a", "b"]

    # who comes while one works is sent to the other
    begun = [asyncio.Event(), asyncio.Event()]
    streams = []
    for event in begun:
        streams.append(asyncio.create_task(stream(gateway, event)))
        await event.wait()
    for each in neurons.values():
        await each.until("/health", lambda health: health["models"][0]["running"] == 1)
    served = await asyncio.gather(*(whole(gateway) for _ in range(4)))
    assert {text for _, text in served} == {answer}

    neurons["a"].process.kill()
    ended = dict(await asyncio.gather(*streams))
    *_, error, done = ended["a"].removesuffix(b"\n\n").split(b"\n\n")
    assert b'"code":"upstream_connection_error"' in error
    assert done == sse.DONE.strip()
    assert b'"error"' not in ended["b"]
    assert b'"finish_reason":"length"' in ended["b"]
    for _ in range(3):
        assert await whole(gateway) == ("b", answer)
    listed = await gateway.until(
        "/v1/models", lambda found: len(found["data"][0]["locations"]) == 1, 10
    )
    assert [at["node"] for at in listed["data"][0]["locations"]] == ["b"]
