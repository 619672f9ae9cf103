# SPDX-License-Identifier: GPL-3.0-or-later
"""Every inference route through both daemons, and a queue that a fleet spreads."""

import asyncio
import json
from typing import Any

import pytest

from cortex_core import sse

pytestmark = pytest.mark.slow

WRITER = "echo/writer"
EMBEDDER = "echo/embedder?embeddings=1"
CATALOGUE = "".join(
    f'[[models]]\nid = "{model}"\nharness = "echo"\n' for model in (WRITER, EMBEDDER)
)
ONE_EACH = '[[harnesses]]\nname = "echo"\n[admission]\nmax_per_principal = 1\n'
ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    (WRITER, "/v1/responses", {"input": "one two"}),
    (WRITER, "/tokenize", {"prompt": "one two"}),
    (EMBEDDER, "/v1/embeddings", {"input": ["one two", "three"]}),
    (EMBEDDER, "/v1/score", {"text_1": "one two", "text_2": ["one two", "three"]}),
    (EMBEDDER, "/v1/rerank", {"query": "one", "documents": ["two", "one"]}),
]


async def metrics_of(gateway: Any) -> str:
    async with gateway.metrics.open("GET", "/metrics") as reply:
        text: bytes = await reply.read()
    return text.decode()


async def test_every_route_is_answered_and_counted(fleet: Any) -> None:
    gateway = await fleet.gateway(await fleet.neuron(), models=CATALOGUE)
    for model, path, fields in ROUTES:
        status, headers, raw = await gateway.post(path, {"model": model, **fields})
        assert (status, headers[b"x-cortex-model"]) == (200, model.encode()), raw
    status, _, raw = await gateway.post("/v1/embeddings", {"model": WRITER, "input": "a"})
    assert (status, json.loads(raw)["error"]["code"]) == (422, "wrong_modality")
    text = await metrics_of(gateway)
    place = f'{{model="{EMBEDDER}",node="a"}}'
    assert f"cortex_requests_total{place} 3.0" in text
    assert f"cortex_prompt_tokens_total{place} 13.0" in text
    assert f'cortex_completion_tokens_total{{model="{WRITER}",node="a"}} 2.0' in text


async def test_a_stream_of_responses_is_what_the_engine_sent(fleet: Any) -> None:
    gateway = await fleet.gateway(await fleet.neuron(), models=CATALOGUE)
    body = {"model": WRITER, "input": "one two", "stream": True}
    _, _, raw = await gateway.post("/v1/responses", body)
    events = [sse.read_event(event) for event in sse.Splitter().feed(raw)]
    assert events[-1].event == b"response.completed"
    deltas = [json.loads(e.data or b"").get("delta", "") for e in events]
    assert "".join(deltas) == "one two"
    text = await metrics_of(gateway)
    assert f'cortex_time_to_first_token_seconds_count{{model="{WRITER}",node="a"}} 1.0' in text


async def test_clients_are_told_apart_by_their_keys(fleet: Any) -> None:
    slow = "echo/slow?tokens=100000&token_s=0.01"
    neuron = await fleet.neuron(config=ONE_EACH)
    gateway = await fleet.gateway(neuron, models=f'[[models]]\nid = "{slow}"\nharness = "echo"\n')
    path, asked = "/v1/completions", {"model": slow, "prompt": "a", "stream": True}
    ones, anothers = ([(b"authorization", b"Bearer " + key)] for key in (b"one", b"another"))
    whole = json.dumps(asked).encode()
    async with gateway.client.open("POST", path, headers=ones, body=whole) as reply:
        assert (reply.status, bool(await reply.read())) == (200, True)
        for shown, code in ((ones, 429), (anothers, 200), ([(b"x-api-key", b"one")], 429)):
            short = json.dumps({**asked, "max_tokens": 1}).encode()
            async with gateway.client.open("POST", path, headers=shown, body=short) as answer:
                assert answer.status == code
                await answer.read()


async def test_what_one_neuron_refuses_another_takes(fleet: Any) -> None:
    """Two neurons with a place and a place to wait each: five at once are four answers and one honest refusal."""
    model = "echo/busy?max_running=1&ttft_s=1.5"
    config = '[[harnesses]]\nname = "echo"\n[admission]\nmax_waiting = 1\n'
    config += f'[[default_models]]\nmodel_id = "{model}"\nharness = "echo"\n'
    neurons = [await fleet.neuron(name, config) for name in "ab"]
    gateway = await fleet.gateway(*neurons)
    for neuron in neurons:
        await neuron.until("/health", lambda health: health["activation"]["state"] == "ready")
    await gateway.until("/v1/models", lambda found: len(found["data"][0]["locations"]) == 2)
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    async with asyncio.timeout(15):
        got = await asyncio.gather(*(gateway.post("/v1/chat/completions", body) for _ in range(5)))
    assert sorted(status for status, _, _ in got) == [200] * 4 + [429]
    ((_, headers, raw),) = [one for one in got if one[0] == 429]
    assert json.loads(raw)["error"]["code"] == "queue_full"
    assert headers[b"retry-after"] == b"2"


async def test_a_model_of_a_source_goes_by_its_bare_name(fleet: Any) -> None:
    neuron = await fleet.neuron()
    entry = '[[models]]\nid = "org/small"\nharness = "echo"\nsource = "hub"\n'
    gateway = await fleet.gateway(neuron, models=entry)
    for name in ("org/small", "hub:org/small"):
        ask = {"model": name, "messages": [{"role": "user", "content": "one"}]}
        status, headers, raw = await gateway.post("/v1/chat/completions", ask)
        assert (status, headers[b"x-cortex-model"]) == (200, b"org/small")
        answer = json.loads(raw)
        assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("org/small", "one")
        _, _, raw = await gateway.post("/v1/chat/completions", {**ask, "stream": True})
        assert raw.count(b'"model":"org/small"') >= 2
        assert b"hub:" not in raw
    assert [model["id"] for model in await neuron.get("/models")] == ["hub:org/small"]
    (listed,) = (await gateway.get("/v1/models"))["data"]
    assert (listed["id"], listed["loaded"], listed["residency"]) == ("org/small", True, "serving")
    assert await gateway.counts("cortex_requests_total") == {"org/small": 4.0}
    status, _, raw = await gateway.post("/fleet/models/unload", {"model_id": "org/small"})
    assert (status, json.loads(raw)["done"][0]["status"]) == (200, "unloaded")
    assert await neuron.get("/models") == []
