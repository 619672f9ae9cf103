# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.errors import ContextLengthExceededError, InvalidRequestBodyError
from neuron.host.engines.echo_answer import (
    SILENCE,
    THOUGHT,
    Answer,
    ChatAsked,
    CompletionAsked,
    cut_at_stop,
    plan_chat,
    plan_completion,
    split_tokens,
)
from neuron.host.engines.echo_options import EchoOptions

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}, "days": {"type": "integer"}, "unit": {}},
            "required": ["town", "days"],
        },
    },
}


def chat(*said: tuple[str, Any], options: EchoOptions | None = None, **fields: Any) -> Answer:
    messages = [{"role": role, "content": content} for role, content in said]
    asked = msgspec.convert({"messages": messages, **fields}, ChatAsked)
    return plan_chat(asked, options or EchoOptions())


def text(answer: Answer) -> str:
    return "".join(answer.tokens)


@given(st.text())
def test_tokens_joined_are_the_text_again(said: str) -> None:
    assert "".join(split_tokens(said)) == said


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ([("user", "one two three")], "one two three"),
        ([("system", "be kind"), ("user", "a"), ("assistant", "b"), ("user", "c d")], "c d"),
        ([("user", "a"), ("assistant", "b")], "a"),
        ([("user", "a"), ("assistant", None), ("tool", "18 degrees")], "18 degrees"),
        ([("user", [{"type": "text", "text": "see"}, {"type": "image_url"}])], "see"),
        ([("user", "")], SILENCE),
        ([("user", "  a\n b ")], "  a\n b "),
    ],
)
def test_the_last_thing_said_comes_back(said: list[tuple[str, Any]], answer: str) -> None:
    assert text(chat(*said)) == answer


@pytest.mark.parametrize(
    ("fields", "answer", "reason"),
    [
        ({}, "a b c d", "stop"),
        ({"max_tokens": 2}, "a b", "length"),
        ({"max_tokens": 4}, "a b c d", "stop"),
        ({"max_tokens": 9, "max_completion_tokens": 1}, "a", "length"),
        ({"stop": "c"}, "a b ", "stop"),
        ({"stop": ["x", "b c"]}, "a ", "stop"),
        ({"stop": ["c", "b"]}, "a ", "stop"),
        ({"stop": "c", "max_tokens": 1}, "a", "length"),
    ],
)
def test_limits_and_stops_cut_it(fields: dict[str, Any], answer: str, reason: str) -> None:
    got = chat(("user", "a b c d"), **fields)
    assert (text(got), got.finish_reason) == (answer, reason)


def test_a_stop_before_the_first_token_leaves_nothing() -> None:
    assert cut_at_stop(["a", " b"], "a") == []
    assert cut_at_stop(["a", " b"], "") == ["a", " b"]


def test_it_can_be_as_long_as_wanted() -> None:
    answer = chat(("user", "a b"), options=EchoOptions(tokens=5))
    assert answer.tokens == ["a", " b", " a", " b", " a"]
    assert chat(("user", "a b c"), options=EchoOptions(tokens=2)).tokens == ["a", " b"]


def test_thinking_comes_first_and_counts() -> None:
    answer = chat(("user", "a b"), options=EchoOptions(reasoning=True))
    assert ("".join(answer.thinking), text(answer)) == (THOUGHT, "a b")
    assert msgspec.to_builtins(answer.usage) == {
        "prompt_tokens": 2,
        "completion_tokens": 9,
        "total_tokens": 11,
        "completion_tokens_details": {"reasoning_tokens": 7},
    }
    cut = chat(("user", "a b"), options=EchoOptions(reasoning=True), max_tokens=3)
    assert (len(cut.thinking), cut.tokens, cut.finish_reason) == (3, [], "length")


def test_usage_counts_words_of_the_whole_prompt() -> None:
    usage = chat(("system", "be kind"), ("user", "a b c"), max_tokens=2).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 2, 7)


def test_a_tool_is_called_with_arguments_that_fit() -> None:
    answer = chat(("user", "in Oslo"), options=EchoOptions(tools=True), tools=[WEATHER])
    assert answer.call == ("weather", '{"town":"in Oslo","days":1}')
    assert (answer.tokens, answer.finish_reason) == ([], "tool_calls")


@pytest.mark.parametrize(
    ("said", "options", "fields"),
    [
        ([("user", "a")], EchoOptions(), {"tools": [WEATHER]}),
        ([("user", "a")], EchoOptions(tools=True), {}),
        ([("user", "a")], EchoOptions(tools=True), {"tools": [WEATHER], "tool_choice": "none"}),
        ([("user", "q"), ("tool", "a")], EchoOptions(tools=True), {"tools": [WEATHER]}),
    ],
)
def test_no_tool_is_called_where_none_is_wanted(
    said: list[tuple[str, Any]], options: EchoOptions, fields: dict[str, Any]
) -> None:
    answer = chat(*said, options=options, **fields)
    assert (answer.call, text(answer), answer.finish_reason) == (None, "a", "stop")


def test_a_prompt_comes_back() -> None:
    answer = plan_completion(CompletionAsked(prompt="four  five"), EchoOptions(reasoning=True))
    assert (text(answer), answer.thinking, answer.usage.prompt_tokens) == ("four  five", [], 2)


def test_a_context_is_kept() -> None:
    small = EchoOptions(context=4)
    assert text(chat(("user", "a b c"), options=small)) == "a"
    assert text(chat(("user", "a b"), options=small, max_tokens=2)) == "a b"
    for fields in ({}, {"max_tokens": 2}):
        said = "a b c d" if not fields else "a b c"
        with pytest.raises(ContextLengthExceededError, match="maximum context length is 4 tokens"):
            chat(("user", said), options=small, **fields)


@pytest.mark.parametrize(("said", "fields"), [([], {}), ([("user", "a")], {"max_tokens": 0})])
def test_what_cannot_be_answered_is_the_client_s_mistake(
    said: list[tuple[str, Any]], fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestBodyError):
        chat(*said, **fields)
