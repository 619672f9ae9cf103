# SPDX-License-Identifier: GPL-3.0-or-later
"""More models than five nodes have room for: who goes, how far down, and how often, as the metrics count it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

# A device each, which echo engines only pretend to use. Each has room for one small model, the last for a large one.
BUDGETS_MB = {"a": 4096, "b": 4096, "c": 4096, "d": 4096, "e": 7000}
SMALL_MB, LARGE_MB = 3600, 6000
NEURON = (
    '[[harnesses]]\nname = "vllm"\n[[harnesses]]\nname = "echo"\n'
    '[harness.vllm]\nwarm_spare = false\nplatform = "cpu"\ncpu_budget_mb = {budget_mb}\n'
)
RULES = "[eviction]\nmin_residency_s = {residency_s}\ndrain_s = 5\nmax_wait_s = 60\n"
ENTRY = '[[models]]\nid = "{}"\nharness = "echo"\nvram_mb = {}\n'


class Five:
    """The neurons, and a gateway of a test's own before them."""

    def __init__(self, fleet: Any, neurons: list[Any]) -> None:
        self.fleet = fleet
        self.neurons = neurons

    @asynccontextmanager
    async def gateway(
        self, models: list[str], vram_mb: int, residency_s: float
    ) -> AsyncIterator[Any]:
        """A gateway, and empty neurons afterwards."""
        catalogue = "".join(ENTRY.format(model, vram_mb) for model in models)
        rules = RULES.format(residency_s=residency_s)
        gateway = await self.fleet.gateway(*self.neurons, models=catalogue, config=rules)
        try:
            yield gateway
        finally:
            await gateway.stop()
            await asyncio.gather(*(clear(neuron) for neuron in self.neurons))


async def clear(neuron: Any) -> None:
    for model in await neuron.get("/models"):
        await neuron.post("/models/unload", {"model_id": model["id"], "force": True})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def five(open_fleet: Any) -> AsyncIterator[Five]:
    async with open_fleet() as fleet:
        starts = (
            fleet.neuron(name, NEURON.format(budget_mb=budget_mb))
            for name, budget_mb in BUDGETS_MB.items()
        )
        yield Five(fleet, await asyncio.gather(*starts))


async def residents(neurons: list[Any]) -> dict[str, str]:
    """Each model that is anywhere, and its status."""
    return {
        model["id"]: model["status"] for neuron in neurons for model in await neuron.get("/models")
    }


async def ask(gateway: Any, model: str) -> None:
    answer = await gateway.chat(model, f"for {model}")
    assert answer["choices"][0]["message"]["content"] == f"for {model}"


async def test_who_makes_room_sleeps_where_it_can_and_goes_where_not(five: Five) -> None:
    sleeps, stays, tries = "echo/m0", "echo/m1?can_sleep=false", "echo/m2?fail=sleep"
    serving = [f"echo/m{n}" for n in range(3, 8)]
    models = [sleeps, stays, tries, *serving]
    async with five.gateway(models, SMALL_MB, residency_s=0) as gateway:
        for model in models:
            await ask(gateway, model)
        # Those that were not used for longest made room, one for each that found none.
        assert await residents(five.neurons) == {
            sleeps: "sleeping",
            **dict.fromkeys(serving, "loaded"),
        }
        assert await gateway.counts("cortex_evictions_total") == dict.fromkeys(models[:3], 1.0)
        assert await gateway.counts("cortex_cold_starts_total") == dict.fromkeys(models, 1.0)

        for model in (sleeps, stays):
            await ask(gateway, model)
        assert await gateway.counts("cortex_wakes_total") == {sleeps: 1.0}
        cold = {**dict.fromkeys(models, 1.0), stays: 2.0}
        assert await gateway.counts("cortex_cold_starts_total") == cold
        # One has the place of the one that sleeps there, the other that of the least used.
        gone = [serving[2], serving[0]]
        listed = {
            each["id"]: each.get("residency") for each in (await gateway.get("/v1/models"))["data"]
        }
        assert {listed[model] for model in gone} == {"asleep"}
        assert {listed[model] for model in {sleeps, stays, *serving} - {*gone}} == {"serving"}
        assert listed[tries] in (None, "remote")


async def test_pinned_models_stay_and_the_others_take_turns(five: Five) -> None:
    models = [f"echo/m{n}" for n in range(7)]
    async with five.gateway(models, SMALL_MB, residency_s=0) as gateway:
        for model in models[:5]:
            await ask(gateway, model)
        pinned, free = models[:4], models[4]
        for model in pinned:
            status, _, raw = await gateway.post("/fleet/models/pin", {"model_id": model})
            assert status == 200, raw
        for model in (models[5], models[6], free):
            await ask(gateway, model)
        assert set(await gateway.counts("cortex_evictions_total")) == {free, models[5], models[6]}
        found = await residents(five.neurons)
        assert {model: found[model] for model in (*pinned, free)} == dict.fromkeys(
            (*pinned, free), "loaded"
        )

        await gateway.post("/fleet/models/pin", {"model_id": free})
        status, headers, raw = await gateway.post(
            "/v1/chat/completions", {"model": models[5], "messages": []}
        )
        assert (status, json.loads(raw)["error"]["code"]) == (404, "model_infeasible")
        assert b"retry-after" not in headers


async def test_arrivals_that_take_turns_do_not_make_models_take_turns(five: Five) -> None:
    a, b, c = models = ["echo/a", "echo/b", "echo/c"]
    async with five.gateway(models, LARGE_MB, residency_s=1) as gateway:
        arrivals = [a, b, a, a, c, a, b]
        asks = []
        for model in arrivals * 3:
            asks.append(asyncio.create_task(ask(gateway, model)))
            await asyncio.sleep(0.02)
        async with asyncio.timeout(30):
            await asyncio.gather(*asks)
        assert sum((await gateway.counts("cortex_evictions_total")).values()) <= 3
        assert set(await gateway.counts("cortex_requests_total")) == set(models)
        assert [len(await neuron.get("/models")) for neuron in five.neurons[:4]] == [0, 0, 0, 0]


async def test_two_that_are_asked_for_all_the_time_each_have_their_residency(five: Five) -> None:
    residency_s, turns = 0.6, 4
    # as long as that only where going and coming back take long
    one, other = models = [f"echo/{name}?sleep_s=0.1&wake_s=0.2" for name in ("one", "other")]
    async with five.gateway(models, LARGE_MB, residency_s) as gateway:
        began_s = time.monotonic()
        asked = dict.fromkeys(models, 0)

        async def go_on(model: str) -> None:
            while True:
                await ask(gateway, model)
                asked[model] += 1
                await asyncio.sleep(0.01)

        going = [asyncio.create_task(go_on(model)) for model in models * 2]
        try:
            async with asyncio.timeout(60):
                while sum((await gateway.counts("cortex_evictions_total")).values()) < turns:
                    assert not any(task.done() for task in going)
                    await asyncio.sleep(0.05)
        finally:
            for task in going:
                task.cancel()
            await asyncio.wait(going)
        # None starved, and none was sent away before its time.
        assert time.monotonic() - began_s >= (turns - 1) * residency_s
        evicted = await gateway.counts("cortex_evictions_total")
        assert abs(evicted[one] - evicted[other]) <= 1
        assert min(asked.values()) >= turns
