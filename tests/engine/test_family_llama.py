# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that does not think, and writes calls as bare JSON: exactly what it says, taken apart."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from scripted import LLAMA, RECORD, TOOLS, Heard, Speaker, start_speaker

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCRIPTS = {
    "plain": "Water boils at a hundred degrees.",
    "markup": "One opens it with <think> and closes it.",
    "call": '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}',
    "tagged": '<|python_tag|>{"name": "get_time", "parameters": {"place": "Rome"}}; {"name": "get_weather", "parameters": {"city": "Oslo"}}',
    "cut": '{"name": "get_time", "parameters": {"place": "Lon',
    "code": "<|python_tag|>print(40 + 2)",
    "bare": '{"name":"Bob","age":41}',
}
CALLED = ("get_weather", {"city": "Paris", "days": 3})
BOTH = (("get_time", {"place": "Rome"}), ("get_weather", {"city": "Oslo"}))
WEATHER = {"type": "function", "function": {"name": "get_weather"}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def speaker(
    tmp_path_factory: pytest.TempPathFactory, start_model: Any
) -> AsyncIterator[Speaker]:
    async with start_speaker(tmp_path_factory, start_model, LLAMA, SCRIPTS) as speaker:
        yield speaker


async def test_it_is_known_for_what_it_is(speaker: Speaker) -> None:
    assert speaker.model.ready.capabilities == ["text", "tools"]


CASES: list[tuple[str, str, dict[str, Any], Heard]] = [
    ("an answer", "plain", {}, Heard(SCRIPTS["plain"])),
    ("an answer with tools at hand", "plain", {"tools": TOOLS}, Heard(SCRIPTS["plain"])),
    ("a marker that is none", "markup", {}, Heard(SCRIPTS["markup"])),
    ("a call", "call", {"tools": TOOLS}, Heard(None, None, (CALLED,), "tool_calls")),
    ("a call that must be", "call", {"tools": TOOLS, "tool_choice": "required"}, Heard(None, None, (CALLED,), "tool_calls")),
    ("a call by name", "call", {"tools": TOOLS, "tool_choice": WEATHER}, Heard(None, None, (CALLED,), "tool_calls")),
    ("two calls after their token", "tagged", {"tools": TOOLS}, Heard(None, None, BOTH, "tool_calls")),
    ("code is no call", "code", {"tools": TOOLS}, Heard("print(40 + 2)")),
    ("a record", "bare", {"response_format": RECORD}, Heard('{"name":"Bob","age":41}')),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "fields", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
async def test_what_it_says_is_taken_apart(
    speaker: Speaker, script: str, fields: dict[str, Any], expected: Heard, stream: bool
) -> None:
    assert await speaker.hear(script, stream=stream, **fields) == expected


async def test_a_call_cut_off_is_text(speaker: Speaker) -> None:
    assert await speaker.hear("cut", tools=TOOLS) == Heard(SCRIPTS["cut"])


async def test_no_reasoning_is_counted_where_there_is_none(speaker: Speaker) -> None:
    answer = await speaker.ask("plain")
    assert "completion_tokens_details" not in answer.json["usage"]


@pytest.mark.parametrize(
    ("written", "rendered"),
    [('{"city": "Paris", "days": 3}', "citydays"), ('{"city": "Par', ""), ("", "")],
)
async def test_arguments_of_earlier_calls_are_objects_to_the_template(
    speaker: Speaker, written: str, rendered: str
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": written}}
    said = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]
    answer = await speaker.ask("plain", said=said, return_prompt_text=True)
    turn = f"<|start_header_id|>assistant<|end_header_id|>\n\n{rendered}<|eot_id|>"
    assert turn in answer.json["prompt_text"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tools", [[], TOOLS])
async def test_a_template_that_fails_is_told(
    speaker: Speaker, tools: list[Any], stream: bool
) -> None:
    fields: dict[str, Any] = {"tools": tools} if tools else {}
    answer = await speaker.ask("plain", said="Fail", stream=stream, **fields)
    assert answer.status == 400
    assert answer.json["error"]["code"] == "invalid_request_body"
    assert "it takes no such message" in answer.json["error"]["message"]
