# SPDX-License-Identifier: GPL-3.0-or-later
import json
from typing import Any

import msgspec
import pytest

from cortex_core import sse
from cortex_core.errors import ChainedConversationError, InvalidRequestBodyError
from neuron.host.engines.echo_answer import Answer
from neuron.host.engines.echo_options import EchoOptions
from neuron.host.engines.echo_responses import ResponsesAsked, ResponsesWriter, plan_response
from neuron.host.engines.echo_wire import Head

HEAD = Head(id="resp_0123", created=7, model="m")


def plan(options: EchoOptions | None = None, **fields: Any) -> Answer:
    return plan_response(msgspec.convert(fields, ResponsesAsked), options or EchoOptions())


def stream(answer: Answer) -> list[Any]:
    writer = ResponsesWriter()
    raw = [writer.open(HEAD), *writer.parts(HEAD, answer), writer.close(HEAD, answer)]
    events = [sse.read_event(event) for event in sse.Splitter().feed(b"".join(raw))]
    data = [json.loads(event.data or b"") for event in events]
    assert [event.event.decode() for event in events] == [d["type"] for d in data]
    return data


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("one two", "one two"),
        ([{"role": "user", "content": "one"}], "one"),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}], "a"),
        ([{"role": "user", "content": "a"}, {"type": "reasoning", "summary": []}], "a"),
        (
            [
                {"role": "user", "content": "a"},
                {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"},
                {"type": "function_call_output", "call_id": "1", "output": "18 degrees"},
            ],
            "18 degrees",
        ),
    ],
)  # fmt: skip
def test_the_last_thing_said_comes_back(given: Any, text: str) -> None:
    assert "".join(plan(input=given).tokens) == text


def test_instructions_are_part_of_the_prompt() -> None:
    usage = plan(input="a b", instructions="be kind").usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (4, 2)


def test_nothing_is_thought_here() -> None:
    answer = plan(EchoOptions(reasoning=True), input="a")
    assert (answer.thinking, answer.call, answer.tokens) == ([], None, ["a"])


TOOLS = [
    {"type": "web_search"},
    {"type": "function", "name": "f", "parameters": {"properties": {"a": {"type": "string"}}}},
]
CALLED = {
    "id": "fc_0123",
    "type": "function_call",
    "status": "completed",
    "arguments": '{"a":"one"}',
    "call_id": "call_0123",
    "name": "f",
}


def test_the_first_function_is_called_whole_and_streamed() -> None:
    answer = plan(EchoOptions(tools=True), input="one", tools=TOOLS)
    whole = json.loads(ResponsesWriter().whole(HEAD, answer))
    assert whole["output"] == [CALLED]
    data = stream(answer)
    assert [d["type"] for d in data] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [d["sequence_number"] for d in data] == list(range(7))
    assert data[2]["item"] == {**CALLED, "status": "in_progress", "arguments": ""}
    assert data[3]["delta"] == data[4]["arguments"] == CALLED["arguments"]
    assert data[5]["item"] == CALLED
    assert data[6]["response"] == whole


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "a"},
        {"input": "a", "tools": TOOLS[:1]},
        {"input": "a", "tools": TOOLS, "tool_choice": "none"},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": "a"}], "tools": TOOLS},
    ],
)  # fmt: skip
def test_nothing_is_called_without_need(fields: dict[str, Any]) -> None:
    answer = plan(EchoOptions(tools=True), **fields)
    assert (answer.call, answer.tokens) == (None, ["a"])


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"input": "a", "previous_response_id": "resp_1"}, ChainedConversationError),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, ChainedConversationError),
        ({"input": []}, InvalidRequestBodyError),
        ({"input": [{"content": "a"}]}, InvalidRequestBodyError),
        ({"input": [{"role": "user", "content": 3}]}, InvalidRequestBodyError),
        ({"input": "a", "max_output_tokens": -1}, InvalidRequestBodyError),
        ({"input": "a", "tools": [{"type": "function"}]}, InvalidRequestBodyError),
    ],
)
def test_what_cannot_be_answered_is_the_client_s_mistake(
    fields: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        plan(**fields)


def test_a_stream_opens_speaks_and_closes_in_order() -> None:
    data = stream(plan(input="one two"))
    assert [d["type"] for d in data] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [d["sequence_number"] for d in data] == list(range(10))
    assert [d["delta"] for d in data if "delta" in d] == ["one", " two"]
    assert data[0]["response"]["status"] == "in_progress"
    assert {d["item_id"] for d in data if "item_id" in d} == {"msg_0123"}
    assert data[6]["text"] == "one two"


def test_a_whole_answer_says_what_the_stream_s_last_event_says() -> None:
    answer = plan(input="one two")
    whole = json.loads(ResponsesWriter().whole(HEAD, answer))
    assert whole == stream(answer)[-1]["response"]
    assert (whole["id"], whole["object"], whole["status"]) == ("resp_0123", "response", "completed")
    assert whole["output"][0]["content"][0]["text"] == "one two"
    assert whole["usage"] == {
        "input_tokens": 2,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 4,
    }


def test_what_was_cut_short_is_incomplete() -> None:
    answer = plan(input="one two three", max_output_tokens=2)
    last = stream(answer)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"
