# SPDX-License-Identifier: GPL-3.0-or-later
"""The vendors' JavaScript packages and the AI SDK, headless, against gateway, neuron and echo engines."""

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MODELS = (
    "echo/plain",
    "echo/thinks?reasoning=1",
    "echo/calls?tools=1",
    "echo/slow?tokens=1000&token_s=0.05",
    "echo/busy?fail=status:503",
)
CATALOGUE = "".join(f'[[models]]\nid = "{model}"\nharness = "echo"\n' for model in MODELS)
TEXT = "one two three"


async def run(fleet: Any, agents: Any, script: str) -> Any:
    """What the script told. The stream that it left in the middle has been ended on the neuron as well."""
    neuron = await fleet.neuron()
    gateway = await fleet.gateway(neuron, models=CATALOGUE)
    ran = await agents.script(script, gateway.endpoint)
    assert ran.code == 0, ran.err
    await neuron.until("/health", lambda h: not any(m["running"] for m in h["models"]))
    return json.loads(ran.out)


async def test_openai(fleet: Any, agents: Any) -> None:
    assert await run(fleet, agents, "openai.mjs") == {
        "plain": TEXT,
        "streamed": TEXT,
        "usage": 3,
        "tool": "18, sunny",
        "response": TEXT,
        "pieces": 3,
        "unknown": ["NotFoundError", "model_not_found"],
        "busy": ["InternalServerError", 503],
    }


async def test_anthropic(fleet: Any, agents: Any) -> None:
    told = await run(fleet, agents, "anthropic.mjs")
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
    }


async def test_the_ai_sdk_in_both_dialects(fleet: Any, agents: Any) -> None:
    told = await run(fleet, agents, "vercel.mjs")
    assert set(told) == {"openai", "anthropic"}
    for name, found in told.items():
        assert "nobody/knows" in found.pop("says"), name
        assert found == {
            "plain": TEXT,
            "streamed": TEXT,
            "usage": 10,
            "thought": True,
            "tool": "18, sunny",
            "steps": 2,
            "aborted": True,
            "unknown": ["AI_APICallError", 404],
            "busy": True,
        }, name
