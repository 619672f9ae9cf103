# SPDX-License-Identifier: GPL-3.0-or-later
"""A model whose template opens its reasoning, and that writes calls as XML: exactly what it says, taken apart."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from scripted import RECORD, TOOLS, XML, Heard, Speaker, start_speaker

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALL = """<tool_call>
<function=get_weather>
<parameter=city>
Paris
</parameter>
<parameter=days>
3
</parameter>
<parameter=hot>
true
</parameter>
</function>
</tool_call>"""
CALLED = ("get_weather", {"city": "Paris", "days": 3, "hot": True})
BROKEN = "<tool_call>\nno name, nor anything\n</tool_call>"
UNTERMINATED = "<tool_call>\n<function=get_time>\n<parameter=place>\nRo"
SCRIPTS = {
    "answer": "Let me think about it.\n</think>\n\nThe sky is blue.",
    "endless": "First of all, I must find out what is meant.",
    "plain": "Water boils at a hundred degrees.",
    "call": f"They ask for weather.\n</think>\n\n{CALL}",
    "wordy": "One more place.\n</think>\n\nI look it up.\n\n" + CALL.replace("Paris", "Oslo"),
    "broken": f"What could it be?\n</think>\n\n{BROKEN}",
    "cut": f"Rome, they say.\n</think>\n\n{UNTERMINATED}",
    "record": 'A record is wanted.\n</think>{"name":"Ada","age":36}',
    "bare": '{"name":"Bob","age":41}',
    "wrong": 'Something else.\n</think>Sure: {"x":1}',
}
WEATHER = {"type": "function", "function": {"name": "get_weather"}}
OFF: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def speaker(
    tmp_path_factory: pytest.TempPathFactory, start_model: Any
) -> AsyncIterator[Speaker]:
    async with start_speaker(tmp_path_factory, start_model, XML, SCRIPTS) as speaker:
        yield speaker


CASES: list[tuple[str, str, dict[str, Any], Heard]] = [
    ("an answer", "answer", {}, Heard("The sky is blue.", "Let me think about it.")),
    ("cut off while thinking", "endless", {}, Heard(None, SCRIPTS["endless"])),
    ("told not to think", "plain", OFF, Heard(SCRIPTS["plain"])),
    ("a call", "call", {"tools": TOOLS}, Heard(None, "They ask for weather.", (CALLED,), "tool_calls")),
    (
        "words before a call",
        "wordy",
        {"tools": TOOLS},
        Heard("I look it up.", "One more place.", (("get_weather", {**CALLED[1], "city": "Oslo"}),), "tool_calls"),
    ),
    ("a block that is no call", "broken", {"tools": TOOLS}, Heard(BROKEN, "What could it be?")),
    ("a call that must be", "call", {"tools": TOOLS, "tool_choice": "required"}, Heard(None, "They ask for weather.", (CALLED,), "tool_calls")),
    ("a call by name", "call", {"tools": TOOLS, "tool_choice": WEATHER}, Heard(None, "They ask for weather.", (CALLED,), "tool_calls")),
    ("calls when none are wanted", "call", {"tools": TOOLS, "tool_choice": "none"}, Heard(CALL, "They ask for weather.")),
    ("calls without tools", "call", {}, Heard(CALL, "They ask for weather.")),
    ("a stop word that holds text back", "answer", {"stop": ["blue cheese, and lots of it"]}, Heard("The sky is blue.", "Let me think about it.")),
    ("a user who writes a marker", "plain", {"said": "What does <think> mean?", **OFF}, Heard(SCRIPTS["plain"])),
    ("a record, after thinking", "record", {"response_format": RECORD}, Heard('{"name":"Ada","age":36}', "A record is wanted.")),
    ("a record, without thinking", "bare", {"response_format": RECORD, **OFF}, Heard('{"name":"Bob","age":41}')),
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
    assert await speaker.hear("cut", tools=TOOLS) == Heard(UNTERMINATED, "Rome, they say.")


async def test_a_call_that_a_stream_had_begun_never_looks_whole(speaker: Speaker) -> None:
    heard = await speaker.hear("cut", tools=TOOLS, stream=True)
    assert heard.calls == (("get_time", '{"place": "Ro'),)
    assert heard.content is None


@pytest.mark.parametrize("stream", [False, True])
async def test_json_begins_where_the_thinking_ends(speaker: Speaker, stream: bool) -> None:
    heard = await speaker.hear("wrong", stream=stream, response_format=RECORD, max_tokens=30)
    assert heard.reasoning == "Something else."
    assert (heard.content or "").startswith('{"name":"')


async def test_reasoning_is_counted_up_to_its_end(speaker: Speaker) -> None:
    answer = await speaker.ask("answer", logprobs=True)
    said = [token["token"] for token in answer.json["choices"][0]["logprobs"]["content"]]
    details = answer.json["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": said.index("</think>") + 1}
    endless = await speaker.ask("endless", max_tokens=4)
    assert endless.json["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}
    plain = await speaker.ask("plain", **OFF)
    assert plain.json["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_responses_api_takes_it_apart_too(speaker: Speaker, stream: bool) -> None:
    answer = await speaker.ask_responses("answer", stream=stream)
    if stream:
        done = [e for e in answer.body.decode().split("\n\n") if "response.completed" in e]
        output = msgspec.json.decode(done[0].partition("data: ")[2])["response"]["output"]
    else:
        output = answer.json["output"]
    assert [item["type"] for item in output] == ["reasoning", "message"]
    assert output[0]["content"][0]["text"] == "Let me think about it."
    assert output[1]["content"][0]["text"] == "The sky is blue."
