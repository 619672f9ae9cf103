# SPDX-License-Identifier: GPL-3.0-or-later
"""Models that do not fit together, on real daemons: echo engines, whose catalogue says how much of the device they take."""

import asyncio
import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow

# A device of 4096 MiB: the budget of vLLM on a CPU, which echo engines only pretend to use.
NEURON = (
    '[[harnesses]]\nname = "vllm"\n[[harnesses]]\nname = "echo"\n'
    '[harness.vllm]\nwarm_spare = false\nplatform = "cpu"\ncpu_budget_mb = 4096\n'
)
SLEEPS = "echo/sleeps"
STAYS = "echo/stays?can_sleep=false"
RULES = "[eviction]\nmin_residency_s = {residency_s}\ndrain_s = 5\nmax_wait_s = 20\n"


def catalogue(*ids: str) -> str:
    entry = '[[models]]\nid = "{}"\nharness = "echo"\nvram_mb = 3000\n'
    return "".join(entry.format(model_id) for model_id in ids)


async def counts(gateway: Any, name: str) -> dict[str, float]:
    """A metric's values by model."""
    async with gateway.metrics.open("GET", "/metrics") as reply:
        lines = (await reply.read()).decode().splitlines()
    rows = [line.rsplit(" ", 1) for line in lines if line.startswith(f"{name}{{")]
    return {labels.split('model="')[1].split('"')[0]: float(value) for labels, value in rows}


def states(models: list[dict[str, Any]]) -> dict[str, str]:
    return {model["id"]: model["status"] for model in models}


async def test_two_models_share_a_node_by_turns(fleet: Any) -> None:
    neuron = await fleet.neuron(config=NEURON)
    gateway = await fleet.gateway(
        neuron, models=catalogue(SLEEPS, STAYS), config=RULES.format(residency_s=0)
    )
    for round_, model in enumerate([SLEEPS, STAYS, SLEEPS, STAYS, SLEEPS]):
        answer = await gateway.chat(model, f"round {round_}")
        assert answer["choices"][0]["message"]["content"] == f"round {round_}"
        assert answer["model"] == model
    assert states(await neuron.get("/models")) == {SLEEPS: "loaded"}
    assert await counts(gateway, "cortex_evictions_total") == {SLEEPS: 2.0, STAYS: 2.0}
    assert await counts(gateway, "cortex_cold_starts_total") == {SLEEPS: 1.0, STAYS: 2.0}
    assert await counts(gateway, "cortex_wakes_total") == {SLEEPS: 2.0}


async def test_many_who_ask_at_once_get_their_answers_in_few_swaps(fleet: Any) -> None:
    neuron = await fleet.neuron(config=NEURON)
    third = "echo/third"
    gateway = await fleet.gateway(
        neuron, models=catalogue(SLEEPS, STAYS, third), config=RULES.format(residency_s=1)
    )
    order = [SLEEPS, STAYS, SLEEPS, SLEEPS, third, SLEEPS, STAYS] * 5
    answers = await asyncio.gather(
        *(gateway.chat(model, f"n {n}") for n, model in enumerate(order))
    )
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts == [f"n {n}" for n in range(len(order))]
    assert sum((await counts(gateway, "cortex_evictions_total")).values()) == 2
    assert sum((await counts(gateway, "cortex_cold_starts_total")).values()) == 3


async def test_an_answer_that_runs_is_not_cut_for_another_model(fleet: Any) -> None:
    neuron = await fleet.neuron(config=NEURON)
    slow = "echo/slow?tokens=40&token_s=0.05"
    gateway = await fleet.gateway(
        neuron, models=catalogue(slow, STAYS), config=RULES.format(residency_s=0)
    )
    ask = {"model": slow, "stream": True, "messages": [{"role": "user", "content": "a"}]}
    running = asyncio.create_task(gateway.post("/v1/chat/completions", ask))
    await neuron.until("/health", lambda h: any(m["running"] for m in h["models"]))
    assert (await gateway.chat(STAYS, "hello"))["model"] == STAYS
    status, _, raw = await running
    assert status == 200
    assert raw.count(b'"content":') >= 40
    assert b"error" not in raw


async def test_an_operator_moves_models(fleet: Any) -> None:
    neuron = await fleet.neuron(config=NEURON)
    gateway = await fleet.gateway(neuron, models=catalogue(SLEEPS, STAYS))

    async def order(path: str, **body: str) -> tuple[int, Any]:
        status, _, raw = await gateway.post(f"/fleet/{path}", body)
        return status, json.loads(raw)

    for verb, status in (("load", "loaded"), ("sleep", "sleeping"), ("wake", "loaded")):
        code, told = await order(f"models/{verb}", model_id=SLEEPS)
        assert (code, told["done"][0]["status"]) == (200, status)
    await order("models/pin", model_id=SLEEPS)
    code, told = await order("models/load", model_id=STAYS)
    assert (code, told["error"]["code"]) == (404, "model_infeasible")
    await order("models/unpin", model_id=SLEEPS)
    _, told = await order("models/unload", model_id=SLEEPS)
    assert told["done"][0]["status"] == "unloaded"
    assert await neuron.get("/models") == []
