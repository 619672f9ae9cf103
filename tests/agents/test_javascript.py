# SPDX-License-Identifier: GPL-3.0-or-later
"""The vendors' JavaScript packages and the AI SDK, headless, against gateway, neuron and echo engines."""

import json
from typing import Any

import pytest
from passing import Passing, passing_to

pytestmark = pytest.mark.slow

MODELS = (
    "echo/plain",
    "echo/thinks?reasoning=1",
    "echo/calls?tools=1",
    "echo/slow?tokens=1000&token_s=0.05",
    "echo/busy?fail=status:503",
    "echo/cold?load_s=2",
    "echo/cold-openai?load_s=2",
    "echo/cold-responses?load_s=2",
    "echo/cold-anthropic?load_s=2",
    "echo/breaks?fail=stream&tokens=50",
    "echo/breaks-openai?fail=stream&tokens=50",
    "echo/breaks-responses?fail=stream&tokens=50",
    "echo/breaks-anthropic?fail=stream&tokens=50",
)
# A cold load is to be held with signs of life, in a test's time.
CONFIG = "[loading]\ncommit_after_s = 0.3\nkeepalive_s = 0.3\n"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CATALOGUE = "".join(f'[[models]]\nid = "{model}"\nharness = "echo"\n' for model in MODELS)
TEXT = "one two three"
# Where the AI SDK's providers differ. That for Responses reads summaries of reasoning only, and names what it
# believes to be stored by an id.
PROVIDERS: dict[str, dict[str, Any]] = {
    "openai": {"failed": "no network"},
    "responses": {
        "failed": "no network",
        "usage": 3,
        "thought": False,
        "kept": "chained_conversation_not_supported",
    },
    "anthropic": {"failed": "Error: no network"},
}


async def run(fleet: Any, agents: Any, script: str, *args: str) -> tuple[Any, Passing]:
    """What the script told. The stream that it left in the middle has been ended on the neuron as well."""
    neuron = await fleet.neuron()
    async with passing_to(neuron) as (passing, endpoint):
        gateway = await fleet.gateway(endpoint, models=CATALOGUE, config=CONFIG)
        ran = await agents.script(script, gateway.endpoint, *args)
        assert ran.code == 0, ran.err
        await neuron.until("/health", lambda h: not any(m["running"] for m in h["models"]))
    return json.loads(ran.out), passing


async def test_openai(fleet: Any, agents: Any) -> None:
    told, passing = await run(fleet, agents, "openai.mjs")
    assert told == {
        "plain": TEXT,
        "image": TEXT,
        "seenInResponse": TEXT,
        "structured": "Paris",
        "thought": "I will repeat what I was told.",
        "failed": "Error: no network",
        "cold": TEXT,
        "broken": ["APIError", "engine_died", True],
        "streamed": TEXT,
        "usage": 3,
        "tool": "18, sunny",
        "response": TEXT,
        "pieces": 3,
        "unknown": ["NotFoundError", "model_not_found"],
        "busy": ["InternalServerError", 503],
    }
    assert (passing.images, passing.schemas) == (2, [SCHEMA])


@pytest.mark.parametrize("package", ["@anthropic-ai/sdk", "anthropic-before"])
async def test_anthropic(fleet: Any, agents: Any, package: str) -> None:
    told, passing = await run(fleet, agents, "anthropic.mjs", package)
    assert sorted(told.pop("models")) == sorted(MODELS)
    assert told == {
        "plain": TEXT,
        "streamed": ["thinking", "text"],
        "usage": 10,
        "call": ["tool_use", "get_weather"],
        "tool": "18, sunny",
        "runner": "18, sunny",
        "count": 3,
        "pieces": 3,
        "unknown": ["NotFoundError", "not_found_error"],
        "busy": [529, "overloaded_error"],
        "image": TEXT,
        "structured": "Paris",
        "failed": "Error: no network",
        "coldCount": 3,
        "cold": TEXT,
        "broken": ["engine_died", "api_error", True],
    }
    assert (passing.images, passing.schemas) == (1, [SCHEMA])


async def test_the_ai_sdk_in_both_dialects(fleet: Any, agents: Any) -> None:
    told, passing = await run(fleet, agents, "vercel.mjs")
    assert set(told) == set(PROVIDERS)
    for name, found in told.items():
        assert "nobody/knows" in found.pop("says"), name
        assert found == {
            "plain": TEXT,
            "further": "and four",
            "kept": "and four",
            "streamed": TEXT,
            "usage": 10,
            "thought": True,
            "tool": "18, sunny",
            "steps": 2,
            "aborted": True,
            "unknown": ["AI_APICallError", 404],
            "busy": True,
            "image": TEXT,
            "structured": "Paris",
            "cold": TEXT,
            "broken": [["error"], True],
            **PROVIDERS[name],
        }, name
    assert passing.images == 3
    # The provider for Anthropic has the answer forced into a tool that it makes up.
    assert passing.schemas == [SCHEMA, SCHEMA]
    tools = [asked["tools"][0].get("function", {}) for asked in passing.asked if asked.get("tools")]
    assert [tool["parameters"] for tool in tools if tool.get("name") == "json"] == [SCHEMA]
