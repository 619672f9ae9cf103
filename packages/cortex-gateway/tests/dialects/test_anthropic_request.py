# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core import anthropic
from cortex_core.errors import (
    ChainedConversationError,
    ClientError,
    InvalidRequestBodyError,
    MalformedJsonError,
    MissingModelFieldError,
)
from cortex_gateway.dialects.anthropic_request import Translated, read_count, read_messages

encode = msgspec.json.encode
HI = {"role": "user", "content": "hi"}
BASE = {"model": "m", "max_tokens": 5, "messages": [HI]}
CHAT = {
    "model": "m",
    "max_tokens": 5,
    "messages": [HI],
    "chat_template_kwargs": {"enable_thinking": False},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "output", "schema": SCHEMA, "strict": True},
}
BILLING = "x-anthropic-billing-header: cc_version=2.1.197.9fe; cc_entrypoint=sdk-cli;"


def translate(**fields: Any) -> Translated:
    return read_messages(encode({**BASE, **fields}))


def test_the_least_request() -> None:
    translated = read_messages(encode(BASE))
    assert msgspec.json.decode(translated.body) == CHAT
    assert (translated.model, translated.stream) == ("m", False)
    assert (translated.dropped, translated.hygiene) == ([], [])


THINKS = {"chat_template_kwargs": {"enable_thinking": True}}

THOUGHT = {"type": "thinking", "thinking": "Hm", "signature": "s"}
CALLED = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "sampling": (
        {"temperature": 0.5, "top_p": 1, "top_k": 20, "stop_sequences": ["a", "b"]},
        {"temperature": 0.5, "top_p": 1, "top_k": 20, "stop": ["a", "b"]},
        [],
    ),
    "nulls are nothing": (
        {
            "temperature": None,
            "stop_sequences": None,
            "system": None,
            "tools": None,
            "tool_choice": None,
            "thinking": None,
            "metadata": None,
            "output_config": None,
            "container": None,
            "stream": None,
            "thread": None,
        },
        {},
        [],
    ),
    "no stop sequences": ({"stop_sequences": []}, {}, []),
    "a stream asks for its usage": (
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        [],
    ),
    "no stream": ({"stream": False}, {}, []),
    "thinking with a budget": (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        THINKS,
        ["thinking.budget_tokens"],
    ),
    "thinking as it likes": (
        {"thinking": {"type": "adaptive", "display": "summarized"}},
        THINKS,
        [],
    ),
    "thinking unseen": (
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        THINKS,
        ["thinking.display"],
    ),
    "thinking of a new kind": ({"thinking": {"type": "between_tools"}}, THINKS, ["thinking.type"]),
    "no thinking": ({"thinking": {"type": "disabled"}}, {}, []),
    "a format": (
        {"output_config": {"format": FORMAT, "effort": "high"}},
        {"response_format": RESPONSE_FORMAT},
        ["output_config.effort"],
    ),
    "a format in its older place": (
        {"output_format": FORMAT},
        {"response_format": RESPONSE_FORMAT},
        [],
    ),
    "an effort and a format in its older place": (
        {"output_format": FORMAT, "output_config": {"effort": "low", "format": None}},
        {"response_format": RESPONSE_FORMAT},
        ["output_config.effort"],
    ),
    "a format in both places": (
        {"output_config": {"format": {**FORMAT, "name": "x"}}, "output_format": FORMAT},
        {"response_format": RESPONSE_FORMAT},
        ["output_config.format.name", "output_format"],
    ),
    "who asks": ({"metadata": {"user_id": "u", "x": 1}}, {"user": "u"}, ["metadata.x"]),
    "what has no counterpart": (
        {
            "context_management": {"edits": []},
            "service_tier": "auto",
            "mcp_servers": [{"name": "x"}],
            "stop_sequences": [],
            "cache_control": {"type": "ephemeral"},
            "container": "c",
            "betas": ["x"],
        },
        {},
        [
            "betas",
            "cache_control",
            "container",
            "context_management",
            "mcp_servers",
            "service_tier",
        ],
    ),
    "tools": (
        {
            "tools": [{"name": "f", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        },
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        },
        [],
    ),
    "a system string": (
        {"system": "S"},
        {"messages": [{"role": "system", "content": "S"}, HI]},
        [],
    ),
    "an empty system prompt is none": ({"system": ""}, {}, []),
    "system text from everywhere, in order": (
        {
            "system": [
                {"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "B"},
            ],
            "messages": [
                HI,
                {"role": "system", "content": "C"},
                {"role": "assistant", "content": "yes"},
                {"role": "system", "content": [{"type": "text", "text": "D"}]},
                {"role": "user", "content": "so"},
            ],
        },
        {
            "messages": [
                {"role": "system", "content": "A\n\nB\n\nC\n\nD"},
                HI,
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "so"},
            ]
        },
        ["cache_control"],
    ),
    "turns of one role are one": (
        {
            "messages": [
                HI,
                {"role": "system", "content": "C"},
                {"role": "user", "content": [{"type": "text", "text": "you"}]},
                {"role": "assistant", "content": "a"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f"}]},
                {"role": "user", "content": "wait"},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c"}]},
            ]
        },
        {
            "messages": [
                {"role": "system", "content": "C"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "you"}],
                },
                {
                    "role": "assistant",
                    "content": "a",
                    "tool_calls": [
                        {
                            "id": "c",
                            "type": "function",
                            "function": {"name": "f", "arguments": "{}"},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c", "content": ""},
                {"role": "user", "content": "wait"},
            ]
        },
        [],
    ),
    "an answer that has begun is continued": (
        {"messages": [HI, {"role": "assistant", "content": "The answer is ("}]},
        {
            "messages": [HI, {"role": "assistant", "content": "The answer is ("}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
        [],
    ),
    "one that has said nothing is begun anew": (
        {"messages": [HI, {"role": "assistant", "content": ""}]},
        {"messages": [HI]},
        [],
    ),
    "so is one that has only thought": (
        {"messages": [HI, {"role": "assistant", "content": [THOUGHT]}]},
        {"messages": [HI]},
        ["thinking"],
    ),
    "a turn that says nothing stays in the middle": (
        {"messages": [HI, {"role": "assistant", "content": []}, HI]},
        {"messages": [HI, {"role": "assistant", "content": ""}, HI]},
        [],
    ),
    "a call without a text is no empty turn": (
        {"messages": [HI, {"role": "assistant", "content": [CALLED]}]},
        {"messages": [HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        [],
    ),
    "the least of top_p": ({"top_p": 0}, {"top_p": 1e-06}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_a_request_becomes_this_chat(case: str) -> None:
    fields, chat, dropped = CASES[case]
    translated = translate(**fields)
    assert msgspec.json.decode(translated.body) == {**CHAT, **chat}
    assert translated.dropped == dropped
    assert translated.stream is bool(fields.get("stream"))


def test_the_billing_line_of_claude_code_is_taken_out_unless_switched_off() -> None:
    body = encode(
        {**BASE, "system": [{"type": "text", "text": BILLING}, {"type": "text", "text": "S"}]}
    )
    cleaned = read_messages(body)
    assert msgspec.json.decode(cleaned.body)["messages"][0]["content"] == "S"
    assert cleaned.hygiene == ["claude_code_billing_header"]
    kept = read_messages(body, frozenset())
    assert msgspec.json.decode(kept.body)["messages"][0]["content"] == f"{BILLING}\n\nS"
    assert kept.hygiene == []


def test_a_count_is_of_the_same_prompt() -> None:
    fields = {
        "system": "S",
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "thinking": {"type": "adaptive"},
        "messages": [HI],
    }
    asked = msgspec.json.decode(translate(**fields).body)
    counted = read_count(encode({"model": "m", **fields}))
    assert msgspec.json.decode(counted.body) == {
        k: v for k, v in asked.items() if k != "max_tokens"
    }
    assert (counted.model, counted.stream, counted.dropped) == ("m", False, [])


def test_a_count_names_what_a_message_would() -> None:
    fields = {"model": "m", "messages": [HI], "temperature": 1, "context_management": {"edits": []}}
    assert read_count(encode(fields)).dropped == ["context_management"]


def test_a_thread_is_refused_so_that_the_sdks_send_the_full_history() -> None:
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        with pytest.raises(ChainedConversationError) as caught:
            # A continued thread has little else in it.
            read_messages(encode({"model": "m", "messages": [], "thread": thread}))
        assert anthropic.status_of(caught.value.status) == 400
        told = msgspec.json.decode(anthropic.write_error(caught.value, "r"))["error"]
        assert told["type"] == "invalid_request_error"
        assert told["details"]["error_code"] == "thread_unsupported_request"
        assert told["details"]["unsupported"] == ["thread"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"a":"\xff"}', b'{"a":' + b"[" * 5000])
def test_a_body_that_is_no_json(body: bytes) -> None:
    with pytest.raises(MalformedJsonError):
        read_messages(body)


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"null"])
def test_a_body_that_is_no_object(body: bytes) -> None:
    with pytest.raises(InvalidRequestBodyError):
        read_messages(body)


def test_what_is_nested_without_end_is_refused() -> None:
    body = encode({**BASE, "tools": [{"name": "f", "input_schema": {"a": "HERE"}}]})
    for depth in (200, 900, 980, 990, 1000, 5000):
        deep = body.replace(b'"HERE"', b'{"a":' * depth + b"1" + b"}" * depth)
        for read in (read_messages, read_count):
            try:
                read(deep)
            except MalformedJsonError:
                assert depth > 200


@pytest.mark.parametrize("model", [None, "", 0])
def test_no_model(model: Any) -> None:
    with pytest.raises(MissingModelFieldError):
        translate(model=model)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"model": 5}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"messages": [HI, {"role": "tool", "content": "hi"}]}, "messages.1.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text",
        ),
        ({"messages": [{"role": "system", "content": "S"}]}, "messages"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "text", "text": 1}]}, "system.0.text"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"stop_sequences": "a"}, "stop_sequences"),
        ({"stop_sequences": ["a", 1]}, "stop_sequences.1"),
        ({"stream": "yes"}, "stream"),
        ({"thinking": "yes"}, "thinking"),
        ({"thinking": {}}, "thinking.type"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequestBodyError) as caught:
        translate(**fields)
    assert caught.value.param == path
    assert f"`{path}`" in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)
KINDS = st.sampled_from(
    "text image document search_result thinking redacted_thinking tool_use tool_result novelty".split()
)
BLOCK = st.fixed_dictionaries(
    {"type": KINDS},
    optional={
        name: JSON | st.just({"type": "content", "content": [{"type": "text", "text": "x"}]})
        for name in "text source content thinking id name input tool_use_id is_error title".split()
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"])},
    optional={"content": st.text(max_size=5) | st.lists(BLOCK | JSON, max_size=4) | JSON},
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(list(BASE)), JSON), st.lists(MESSAGE, max_size=4), JSON)
def test_whatever_a_client_sends_is_translated_or_the_clients_fault(
    wrong: dict[str, Any], messages: list[Any], anything: Any
) -> None:
    fields = {
        **BASE,
        "messages": messages,
        "tools": anything,
        "tool_choice": anything,
        "thinking": anything,
        **wrong,
    }
    for body in (encode(fields), encode({**BASE, "messages": messages}), encode(anything)):
        try:
            msgspec.json.decode(read_messages(body).body)
        except ClientError as error:
            anthropic.write_error(error, "r")
