# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo model says what its script says: content, reasoning and tool calls, exactly."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXPECTED = Path(__file__).parents[2] / "tools" / "demo_model" / "expected.json"


def read_call(call: Any) -> Any:
    function = call["function"]
    return {
        "name": function["name"],
        "arguments": msgspec.json.decode(function["arguments"]),
    }


async def ask(model: Any, case: Any) -> Any:
    tools = {"tools": case["tools"]} if case.get("tools") else {}
    answer = await model.chat(case["messages"], **tools)
    message = answer.json["choices"][0]["message"]
    return {
        "messages": case["messages"],
        "reasoning": message.get("reasoning_content"),
        "content": message["content"] or "",
        "tool_calls": [read_call(call) for call in message.get("tool_calls", [])],
    }


async def test_it_says_what_its_script_says(model: Any) -> None:
    cases = msgspec.json.decode(EXPECTED.read_bytes())
    answers = await asyncio.gather(*[ask(model, case) for case in cases])
    assert answers == [
        {
            "messages": case["messages"],
            "reasoning": case["reasoning"],
            "content": case["content"],
            "tool_calls": case.get("tool_calls") or [],
        }
        for case in cases
    ]
