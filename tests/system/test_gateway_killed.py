# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway that is killed while a model comes up for two hundred, and what those find who come afterwards."""

import asyncio
from typing import Any

import pytest

from cortex_core.errors import UpstreamConnectionError

pytestmark = pytest.mark.slow

MODEL = "echo/cold?load_s=4"
CATALOGUE = f'[[models]]\nid = "{MODEL}"\nharness = "echo"\n'
MANY = 200


async def loads_of(neurons: list[Any]) -> float:
    """How many loads there were, by the neurons' own count."""
    counted = [await neuron.counts("neuron_load_seconds_count", "harness") for neuron in neurons]
    return sum(sum(each.values()) for each in counted)


async def ask_all(gateway: Any) -> list[Any]:
    asks = (gateway.chat(MODEL, f"say {n}") for n in range(MANY))
    return await asyncio.gather(*asks, return_exceptions=True)


async def until_loading(neurons: list[Any]) -> None:
    async with asyncio.timeout(10):
        while not any([await neuron.get("/models") for neuron in neurons]):
            await asyncio.sleep(0.02)


async def test_a_gateway_that_comes_back_joins_the_load_that_its_first_life_began(
    fleet: Any,
) -> None:
    neurons = await asyncio.gather(*(fleet.neuron(name) for name in "abcde"))
    gateway = await fleet.gateway(*neurons, models=CATALOGUE)
    first = asyncio.create_task(ask_all(gateway))
    await until_loading(neurons)
    gateway.process.kill()
    await gateway.process.wait()
    assert {type(each) for each in await first} == {UpstreamConnectionError}

    gateway = await fleet.again(gateway)
    answers = await ask_all(gateway)
    texts = [each["choices"][0]["message"]["content"] for each in answers]
    assert texts == [f"say {n}" for n in range(MANY)]
    assert await loads_of(neurons) == 1
    # it asked for none of its own
    assert await gateway.counts("cortex_cold_starts_total") == {}
    assert await gateway.counts("cortex_requests_total") == {MODEL: MANY}
    told = await gateway.get("/fleet")
    assert {each["decision"] for each in told["decisions"]} == {"wait"}
    assert [len(node["models"]) for node in told["nodes"]].count(1) == 1


async def test_a_load_goes_on_for_those_who_wait_when_its_first_client_leaves(fleet: Any) -> None:
    neurons = await asyncio.gather(*(fleet.neuron(name) for name in "ab"))
    gateway = await fleet.gateway(*neurons, models=CATALOGUE)
    first = asyncio.create_task(gateway.chat(MODEL))
    await until_loading(neurons)
    others = [asyncio.create_task(gateway.chat(MODEL, f"say {n}")) for n in range(5)]
    await gateway.until("/fleet", lambda told: told["waiting"][0]["requests"] == 6)
    first.cancel()
    await asyncio.wait({first})
    await gateway.until("/fleet", lambda told: told["waiting"][0]["requests"] == 5, 1)
    answers = await asyncio.gather(*others)
    texts = [each["choices"][0]["message"]["content"] for each in answers]
    assert texts == [f"say {n}" for n in range(5)]
    assert await loads_of(neurons) == 1
    assert await gateway.counts("cortex_requests_total") == {MODEL: 5}
