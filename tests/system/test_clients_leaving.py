# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that leaves, on every route: from it through gateway and neuron to the engine, nothing works on for it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

# Working on a prompt, writing, and measuring, each for longer than a test.
READING = "echo/reading?ttft_s=60"
WRITING = "echo/writing?tokens=100000&token_s=0.005"
EMBEDDING = "echo/embedding?embeddings=1&ttft_s=60"
MODELS = (READING, WRITING, EMBEDDING)
TEXT = [{"role": "user", "content": "one two three"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TEXT},
    "/v1/completions": {"prompt": "one two three"},
    "/v1/responses": {"input": "one two three"},
    "/v1/messages": {"messages": TEXT, "max_tokens": 100_000},
}
POOLING: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "one two three"},
    "/v1/score": {"text_1": "one", "text_2": "two"},
    "/v1/rerank": {"query": "one", "documents": ["two"]},
}


class Case(NamedTuple):
    """A request that does not end by itself."""

    path: str
    body: dict[str, Any]

    def __str__(self) -> str:
        stream = " streamed" if self.body.get("stream") else ""
        return f"{self.path[4:]} {self.body['model'].partition('?')[0]}{stream}"


CASES = [
    Case(path, {**fields, "model": model, "stream": stream})
    for path, fields in ROUTES.items()
    for model in (READING, WRITING)
    for stream in (False, True)
] + [Case(path, {**fields, "model": EMBEDDING}) for path, fields in POOLING.items()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemons(open_fleet: Any) -> AsyncIterator[tuple[Any, Any]]:
    config = '[[harnesses]]\nname = "echo"\n'
    for model in MODELS:
        config += f'[[default_models]]\nmodel_id = "{model}"\nharness = "echo"\n'
    async with open_fleet() as fleet:
        neuron = await fleet.neuron(config=config)
        await neuron.until("/health", lambda told: told["activation"]["state"] == "ready", 20)
        yield await fleet.gateway(neuron), neuron


def running(health: dict[str, Any]) -> int:
    return sum(model["running"] + model["waiting"] for model in health["models"])


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_client_that_leaves_frees_the_engine_within_a_second(
    daemons: Any, case: Case
) -> None:
    gateway, neuron = daemons
    asking = asyncio.create_task(gateway.post(case.path, json.dumps(case.body).encode()))
    await neuron.until("/health", lambda health: running(health) == 1)
    asking.cancel()
    await asyncio.wait({asking})
    await neuron.until("/health", lambda health: running(health) == 0, within_s=1)
    await gateway.until("/fleet", lambda told: told["in_flight"] == 0, within_s=1)
