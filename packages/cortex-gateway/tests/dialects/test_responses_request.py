# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import msgspec
import pytest

from cortex_core.errors import (
    ChainedConversationError,
    CortexError,
    InvalidRequestBodyError,
    MalformedJsonError,
    MissingModelFieldError,
)
from cortex_gateway.dialects.responses_request import Translated, read_response_request

USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object"}


def read(**fields: Any) -> Translated:
    return read_response_request(msgspec.json.encode({"model": "m", "input": "hi", **fields}))


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        ({}, {}),
        ({"instructions": "S"}, {"messages": [{"role": "system", "content": "S"}, USER]}),
        ({"instructions": "S", "input": [{"role": "developer", "content": "T"}, USER]},
         {"messages": [{"role": "system", "content": "S\n\nT"}, USER]}),
        ({"temperature": 0.5, "top_p": 1, "user": "u"}, {"temperature": 0.5, "top_p": 1, "user": "u"}),
        ({"max_output_tokens": 9}, {"max_tokens": 9}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stream": False, "temperature": None, "tools": None, "metadata": {"k": "v"}}, {}),
        ({"text": {"format": {"type": "text"}}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True, "description": None}}},
         {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}}),
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"reasoning": {"effort": "none"}},
         {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}}),
        ({"store": False, "truncation": "disabled", "include": [], "service_tier": "auto", "top_logprobs": 0}, {}),
        ({"previous_response_id": None, "conversation": None, "background": False, "prompt": None}, {}),
    ],
)  # fmt: skip
def test_fields_become_chat_s(fields: dict[str, Any], chat: dict[str, Any]) -> None:
    translated = read(**fields)
    assert msgspec.json.decode(translated.body) == {"model": "m", "messages": [USER], **chat}
    assert (translated.model, translated.stream) == ("m", fields.get("stream", False))
    assert translated.dropped == []


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"prompt_cache_key": "k"}, "prompt_cache_key"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"truncation": "auto"}, "truncation"),
        ({"store": True}, "store"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"client_metadata": {"a": 1}}, "client_metadata"),
        ({"text": {"format": {"type": "json_object", "schema": SCHEMA}}}, "text.format.schema"),
    ],
)
def test_what_cannot_be_carried_is_named(fields: dict[str, Any], name: str) -> None:
    assert read(**fields).dropped == [name]


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"previous_response_id": "resp_1"}, ChainedConversationError, "previous_response_id"),
        ({"conversation": {"id": "c"}}, ChainedConversationError, "conversation"),
        ({"background": True}, InvalidRequestBodyError, "background"),
        ({"prompt": {"id": "p"}}, InvalidRequestBodyError, "prompt"),
        ({"model": ""}, MissingModelFieldError, "model"),
        ({"model": 7}, InvalidRequestBodyError, "model"),
        ({"input": None}, InvalidRequestBodyError, "input"),
        ({"input": []}, InvalidRequestBodyError, "input"),
        ({"input": ["hi"]}, InvalidRequestBodyError, "input.0"),
        ({"instructions": ["S"]}, InvalidRequestBodyError, "instructions"),
        ({"stream": "yes"}, InvalidRequestBodyError, "stream"),
        ({"temperature": "hot"}, InvalidRequestBodyError, "temperature"),
        ({"top_p": True}, InvalidRequestBodyError, "top_p"),
        ({"max_output_tokens": 1.5}, InvalidRequestBodyError, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, InvalidRequestBodyError, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, InvalidRequestBodyError, "text.format.schema"),
        ({"reasoning": {"effort": 1}}, InvalidRequestBodyError, "reasoning.effort"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_by_its_path(
    fields: dict[str, Any], kind: type[CortexError], param: str
) -> None:
    with pytest.raises(kind) as caught:
        read(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"model":"m","input":' + b"[" * 9999])
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedJsonError):
        read_response_request(body)


def test_what_is_no_object_does_not_fit() -> None:
    with pytest.raises(InvalidRequestBodyError):
        read_response_request(b"[]")


def test_the_answer_tells_the_request_again_as_far_as_it_was_carried() -> None:
    tool = {"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}
    told = read(
        instructions="S",
        tools=[tool, {"type": "web_search"}],
        tool_choice="required",
        text={"verbosity": None},
        reasoning={"effort": "low", "summary": "auto"},
        metadata={"k": "v"},
        max_output_tokens=9,
    ).told
    assert told == {
        "instructions": "S",
        "max_output_tokens": 9,
        "metadata": {"k": "v"},
        "parallel_tool_calls": True,
        "reasoning": {"effort": "low", "summary": None},
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "required",
        "tools": [tool],
        "top_p": None,
        "user": None,
    }
