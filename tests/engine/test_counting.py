# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens counted by a model's files alone are those that its engine reads, whatever is asked."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

DEMO = "helexa/demo"
HI = [{"role": "user", "content": "Hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather for a city.",
            "parameters": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"exclusiveMinimum": 0}},
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 1.0}'},
}
TURN = [
    {"role": "system", "content": "Be brief.\n\nü€😀"},
    {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "?"}]},
    {"role": "assistant", "content": None, "reasoning_content": "I ask.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "18, sunny"},
    {"role": "user", "content": "And?"},
]  # fmt: skip
BEGUN = {"continue_final_message": True, "add_generation_prompt": False}
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"messages": HI},
    "thinking off": {"messages": HI, **OFF},
    "thinking on": {"messages": HI, "chat_template_kwargs": {"enable_thinking": True}},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *HI]},
    "tools": {"messages": HI, "tools": TOOLS},
    "a tool turn": {"messages": TURN, "tools": TOOLS},
    "a tool turn without thinking": {"messages": TURN, "tools": TOOLS, **OFF},
    "a begun answer": {"messages": [*HI, {"role": "assistant", "content": "I am"}], **BEGUN, **OFF},
    "much": {"messages": [{"role": "user", "content": "word " * 800}]},
}
CONFIG = "[harness.vllm]\nwarm_spare = false\n"


class Counts:
    """A neuron with the demo model's files, and what it counted before the model was up."""

    def __init__(self, neuron: Any) -> None:
        self.neuron = neuron
        self.by_files: dict[str, int] = {}
        self.burst_s = 0.0

    async def by(self, path: str, body: object) -> dict[str, Any]:
        status, _, raw = await self.neuron.post(path, body)
        assert status == 200, raw
        answer: dict[str, Any] = json.loads(raw)
        return answer

    async def count(self, fields: dict[str, Any]) -> int:
        body = {"spec": {"model_id": DEMO}, "request": {"model": DEMO, **fields}}
        count: int = (await self.by("/models/count", body))["count"]
        return count


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def counts(open_fleet: Any) -> AsyncIterator[Counts]:
    async with open_fleet() as fleet:
        made = Counts(await fleet.neuron(config=CONFIG))
        made.by_files = {name: await made.count(fields) for name, fields in CASES.items()}
        began_s = time.monotonic()
        await asyncio.gather(*(made.count(CASES["a tool turn"]) for _ in range(50)))
        made.burst_s = time.monotonic() - began_s
        assert await made.neuron.get("/models") == []
        await made.by("/models/load", {"model_id": DEMO})
        yield made


@pytest.mark.parametrize("case", CASES)
async def test_a_count_is_what_the_engine_reads(counts: Counts, case: str) -> None:
    asked = {"model": DEMO, **CASES[case]}
    usage = (await counts.by("/v1/chat/completions", {**asked, "max_tokens": 1}))["usage"]
    assert counts.by_files[case] == usage["prompt_tokens"]
    assert counts.by_files[case] == (await counts.by("/tokenize", asked))["count"]
    assert counts.by_files[case] == await counts.count(CASES[case])


async def test_a_burst_costs_little(counts: Counts) -> None:
    assert counts.burst_s < 2, "a count is some milliseconds, once what counts is up"


async def test_a_prompt_that_is_too_long_for_the_model_is_counted(counts: Counts) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 20_000}]}
    assert await counts.count(long) > 20_000


async def test_the_template_of_a_spec_is_the_one_that_counts(open_fleet: Any) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    async with open_fleet() as fleet:
        neuron = await fleet.neuron(config=CONFIG)
        spec = {"model_id": DEMO, "chat_template": template}
        body = {"spec": spec, "request": {"messages": HI}}
        status, _, raw = await neuron.post("/models/count", body)
        assert (status, len(json.loads(raw)["tokens"])) == (200, 1)
