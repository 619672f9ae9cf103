# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.errors import ChainedConversationError, InvalidRequestBodyError
from cortex_gateway.dialects.fields import Dropped
from cortex_gateway.dialects.responses_input import Conversation

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
WRITTEN = {
    "id": "c1",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a": 1}'},
}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "done"}
TOOL = {"role": "tool", "tool_call_id": "c1", "content": "done"}
IMAGE = {"type": "input_image", "image_url": "data:x", "detail": "low"}
SHOWN = {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def read(*items: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    dropped = Dropped()
    conversation = Conversation(dropped)
    for number, item in enumerate(items):
        conversation.add(item, f"input.{number}")
    return conversation.finish(), dropped.names


THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]}
ANNOTATED = {"type": "output_text", "text": "x", "annotations": [{"type": "url_citation"}]}


CARRIED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "a bare message": ([user("hi")], [user("hi")]),
    "a message with its type, id and status": (
        [{"type": "message", "id": "m", "status": "completed", **user("hi")}],
        [user("hi")],
    ),
    "null content": ([user(None)], [user("")]),
    "one text part is a string": ([user([{"type": "input_text", "text": "hi"}])], [user("hi")]),
    "several parts": (
        [user([{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}, IMAGE])],
        [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, SHOWN])],
    ),
    "files and audio in chat's own parts": (
        [
            user(
                [
                    {"type": "input_file", "filename": "a.pdf", "file_data": "data:y"},
                    {"type": "input_audio", "input_audio": {"data": "z", "format": "mp3"}},
                ]
            )
        ],
        [
            user(
                [
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:y"}},
                    {"type": "input_audio", "input_audio": {"data": "z", "format": "mp3"}},
                ]
            )
        ],
    ),
    "system and developer are one leading message": (
        [
            {"role": "developer", "content": "A"},
            user("hi"),
            {"role": "system", "content": [{"type": "input_text", "text": "B"}]},
        ],
        [{"role": "system", "content": "A\n\nB"}, user("hi")],
    ),
    "what the model thought, said and called is one turn": (
        [
            user("hi"),
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "s"}]},
            CALL,
            CALL | {"call_id": "c2", "arguments": {"b": 2}},
            OUTPUT,
            OUTPUT | {"call_id": "c2", "output": [{"type": "input_text", "text": "x"}, {"type": "input_text", "text": "y"}]},
            user("and?"),
        ],
        [
            user("hi"),
            said(
                "s",
                reasoning_content="t",
                tool_calls=[
                    WRITTEN,
                    {"id": "c2", "type": "function", "function": {"name": "f", "arguments": '{"b":2}'}},
                ],
            ),
            TOOL,
            {"role": "tool", "tool_call_id": "c2", "content": "x\ny"},
            user("and?"),
        ],
    ),
    "a turn goes on after its tools": (
        [CALL, OUTPUT, {"role": "assistant", "content": "so"}],
        [{"role": "assistant", "content": None, "tool_calls": [WRITTEN]}, TOOL, said("so")],
    ),
    "a call without arguments": (
        [CALL | {"arguments": None}],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [WRITTEN | {"function": {"name": "f", "arguments": "{}"}}],
            }
        ],
    ),
    "a summary where the reasoning itself is not shown": (
        [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": None}],
        [said("", reasoning_content="s")],
    ),
    "reasoning that says nothing is passed over": (
        [{"type": "reasoning", "summary": []}, user("hi")],
        [user("hi")],
    ),
    "a refusal is what was said": (
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
        [said("no")],
    ),
    "images of tools go with the user's next turn": (
        [CALL, OUTPUT | {"output": [{"type": "input_text", "text": "done"}, IMAGE]}, OUTPUT, user("see?")],
        [
            {"role": "assistant", "content": None, "tool_calls": [WRITTEN]},
            TOOL,
            TOOL,
            user([SHOWN, {"type": "text", "text": "see?"}]),
        ],
    ),
    "images of tools are a turn where none comes": (
        [CALL, OUTPUT | {"output": [IMAGE]}],
        [
            {"role": "assistant", "content": None, "tool_calls": [WRITTEN]},
            TOOL | {"content": ""},
            user([SHOWN]),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("items", "messages"), CARRIED.values(), ids=CARRIED)
def test_items_become_messages(items: list[dict[str, Any]], messages: list[dict[str, Any]]) -> None:
    assert read(*items) == (messages, [])


@pytest.mark.parametrize(
    ("item", "name"),
    [
        (user("hi") | {"name": "n"}, "input.message.name"),
        ({"role": "assistant", "content": "x", "phase": "commentary"}, "input.message.phase"),
        ({"role": "assistant", "content": [ANNOTATED]}, "input.output_text.annotations"),
        (user([IMAGE | {"file_id": "f"}]), "input.input_image.file_id"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "x", "why": "y"}]}, "input.refusal.why"),
        (CALL | {"namespace": "n"}, "input.function_call.namespace"),
        (OUTPUT | {"caller": {"type": "program", "caller_id": "c"}}, "input.function_call_output.caller"),
        (THOUGHT | {"encrypted_content": "x"}, "input.reasoning.encrypted_content"),
        (THOUGHT | {"summary": [{"type": "summary_text", "text": "s"}]}, "input.reasoning.summary"),
        ({"type": "reasoning", "content": [{"type": "novelty", "image": "i"}]}, "input.reasoning.content.image"),
        ({"type": "web_search_call", "id": "w"}, "input.web_search_call"),
        ({"type": "custom_tool_call", "call_id": "c", "name": "n", "input": "i"}, "input.custom_tool_call"),
        ({"type": "a b"}, "input.other"),
        (user([{"type": "input_smell", "smell": "x"}]), "input.input_smell"),
        ({"type": "reasoning", "encrypted_content": "x"}, "input.reasoning.encrypted_content"),
        ({"role": "developer", "content": [IMAGE]}, "input.developer.image"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_is_named(item: dict[str, Any], name: str) -> None:
    assert read(user("hi"), item)[1] == [name]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({}, "input.0.type"),
        ({"type": 7}, "input.0.type"),
        ({"role": "robot", "content": "x"}, "input.0.role"),
        (user(7), "input.0.content"),
        (user([7]), "input.0.content.0"),
        (user([{"type": "input_text"}]), "input.0.content.0.text"),
        (user([{"type": "input_image", "file_id": "f"}]), "input.0.content.0"),
        (user([{"type": "input_image", "image_url": {}}]), "input.0.content.0.image_url"),
        ({"type": "function_call", "call_id": "c"}, "input.0.name"),
        ({"type": "function_call", "name": "f"}, "input.0.call_id"),
        (CALL | {"arguments": 7}, "input.0.arguments"),
        ({"type": "function_call_output", "output": "x"}, "input.0.call_id"),
        ({"type": "reasoning", "content": "x"}, "input.0.content"),
        ({"type": "reasoning", "content": ["x"]}, "input.0.content"),
    ],
)
def test_a_mistake_is_named_by_its_path(item: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestBodyError) as caught:
        read(item)
    assert caught.value.param == param


def test_the_reasoning_itself_is_read_rather_than_its_summary() -> None:
    both = THOUGHT | {"summary": [{"type": "summary_text", "text": "s"}]}
    assert read(both)[0] == [said("", reasoning_content="t")]


def test_what_is_kept_on_a_server_cannot_be_referred_to() -> None:
    with pytest.raises(ChainedConversationError):
        read({"type": "item_reference", "id": "msg_1"})
