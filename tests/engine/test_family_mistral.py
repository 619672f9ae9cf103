# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that opens its reasoning itself, and whose markers are special tokens: exactly what it says, taken apart."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from scripted import MISTRAL, RECORD, TOOLS, Heard, Speaker, start_speaker

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALL = '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}'
CALLED = ("get_weather", {"city": "Paris", "days": 3})
SCRIPTS = {
    "answer": "[THINK]Let me think about it.[/THINK]The sky is blue.",
    "endless": "[THINK]First of all, I must find out what is meant.",
    "plain": "Water boils at a hundred degrees.",
    "call": f"[THINK]They ask for weather.[/THINK]{CALL}",
    "wordy": 'I look it up.[TOOL_CALLS]get_time[ARGS]{"place": "Rome"}',
    "cut": 'Look here: [TOOL_CALLS]get_time[ARGS]{"place": "Lon',
    "record": '[THINK]A record is wanted.[/THINK]{"name":"Ada","age":36}',
    "bare": '{"name":"Bob","age":41}',
    "object": '{"colour":"green"}',
    "wrong": 'Sure, here you are: {"x":1}',
}
WEATHER = {"type": "function", "function": {"name": "get_weather"}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def speaker(
    tmp_path_factory: pytest.TempPathFactory, start_model: Any
) -> AsyncIterator[Speaker]:
    async with start_speaker(tmp_path_factory, start_model, MISTRAL, SCRIPTS) as speaker:
        yield speaker


CASES: list[tuple[str, str, dict[str, Any], Heard]] = [
    ("an answer", "answer", {}, Heard("The sky is blue.", "Let me think about it.")),
    ("cut off while thinking", "endless", {}, Heard(None, "First of all, I must find out what is meant.")),
    ("no marker ever", "plain", {}, Heard(SCRIPTS["plain"])),
    ("a user who writes a marker", "plain", {"said": "What does [THINK] mean?"}, Heard(SCRIPTS["plain"])),
    ("a call", "call", {"tools": TOOLS}, Heard(None, "They ask for weather.", (CALLED,), "tool_calls")),
    ("a call that must be", "call", {"tools": TOOLS, "tool_choice": "required"}, Heard(None, "They ask for weather.", (CALLED,), "tool_calls")),
    ("a call by name", "call", {"tools": TOOLS, "tool_choice": WEATHER}, Heard(None, "They ask for weather.", (CALLED,), "tool_calls")),
    ("words before a call", "wordy", {"tools": TOOLS}, Heard("I look it up.", None, (("get_time", {"place": "Rome"}),), "tool_calls")),
    ("a call without tools", "wordy", {}, Heard('I look it up.get_time{"place": "Rome"}')),
    ("a record, after thinking", "record", {"response_format": RECORD}, Heard('{"name":"Ada","age":36}', "A record is wanted.")),
    ("a record, without thinking", "bare", {"response_format": RECORD}, Heard('{"name":"Bob","age":41}')),
    ("any object", "object", {"response_format": {"type": "json_object"}}, Heard('{"colour":"green"}')),
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


@pytest.mark.parametrize("stream", [False, True])
async def test_json_is_enforced_though_the_model_may_think(speaker: Speaker, stream: bool) -> None:
    heard = await speaker.hear(
        "wrong", stream=stream, response_format=RECORD, max_tokens=30, unless="[THINK]"
    )
    assert heard.reasoning is None
    assert (heard.content or "").startswith('{"name":"')


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_goes_back_between_its_own_markers(speaker: Speaker, stream: bool) -> None:
    headers = [(b"x-include-thinking", b"1")]
    heard = await speaker.hear("answer", stream=stream, headers=headers)
    assert heard == Heard("[THINK]\nLet me think about it.\n[/THINK]\n\nThe sky is blue.")
