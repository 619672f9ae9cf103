# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client's request becomes before vLLM reads it."""

from typing import Any

import pytest

from cortex_core.errors import InvalidRequestBodyError, MalformedJsonError
from neuron.host.engines.vllm_asked import (
    Wish,
    drop_nulls,
    is_yes,
    name_unread,
    plan_embedding,
    plan_request,
    read_fields,
)


def plan(
    fields: dict[str, Any], *, thinking: bool = False, usage_comment: bool = False
) -> tuple[dict[str, Any], Wish]:
    return plan_request(
        fields,
        "m",
        adapters={"pirate"},
        context_tokens=4096,
        thinking=thinking,
        usage_comment=usage_comment,
    )


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"{'a': 1}", b"[" * 9000])
def test_what_is_no_json_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(MalformedJsonError):
        read_fields(body)


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"x"'])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestBodyError):
        read_fields(body)


def test_the_model_is_asked_for_by_its_own_name() -> None:
    assert plan({"model": "alias"})[0] == {"model": "m"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"reasoning_content": "x"}, {"reasoning": "x"}),
        ({"reasoning": "x"}, {"reasoning": "x"}),
        ({"reasoning": "x", "reasoning_content": "y"}, {"reasoning": "x"}),
        ({"reasoning": None, "reasoning_content": "y"}, {"reasoning": "y"}),
        ({"content": None}, {"content": None}),
        ({}, {}),
        ("not a message", "not a message"),
    ],
)
def test_both_names_of_reasoning_are_taken_in(message: Any, expected: Any) -> None:
    assert plan({"messages": [message]})[0]["messages"] == [expected]


def call(*arguments: Any) -> dict[str, Any]:
    named = {"name": "f", **({"arguments": arguments[0]} if arguments else {})}
    return {"role": "assistant", "tool_calls": [{"id": "c", "function": named}]}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (call({"a": "ü"}), call('{"a":"ü"}')),
        (call(None), call("{}")),
        (call(), call("{}")),
        (call('{"a": 1}'), call('{"a": 1}')),
        (call(7), call(7)),
        ({"role": "assistant", "tool_calls": None, "name": None}, {"role": "assistant"}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": None}),
        ({"role": "tool", "content": None}, {"role": "tool", "content": ""}),
        ({"role": "user", "content": None}, {"role": "user", "content": ""}),
        ({"role": "user"}, {"role": "user"}),
        ({"role": "assistant", "tool_calls": ["x", {"function": 7}]}, {"role": "assistant", "tool_calls": ["x", {"function": 7}]}),
        ("x", "x"),
    ],
)  # fmt: skip
def test_what_lenient_clients_write_is_read_as_by_the_book(message: Any, expected: Any) -> None:
    assert plan({"messages": [message]})[0]["messages"] == [expected]


OLD_CALL = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
NEW_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "f", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
REFUSAL = {"type": "refusal", "refusal": "No."}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (OLD_CALL, NEW_CALL),
        ({**NEW_CALL, "function_call": None}, NEW_CALL),
        ({**NEW_CALL, "function_call": {"name": "g", "arguments": "{}"}}, NEW_CALL),
        ({**OLD_CALL, "function_call": "f"}, {"role": "assistant", "content": None}),
        ({"role": "function", "name": "f", "content": "x"}, {"role": "tool", "name": "f", "content": "x", "tool_call_id": "f"}),
        ({"role": "assistant", "content": None, "refusal": "No."}, {"role": "assistant", "content": "No."}),
        ({"role": "assistant", "refusal": "No."}, {"role": "assistant", "content": "No."}),
        ({"role": "assistant", "content": "Well. ", "refusal": "No."}, {"role": "assistant", "content": "Well. No."}),
        ({"role": "assistant", "content": [REFUSAL], "refusal": "No."}, {"role": "assistant", "content": [REFUSAL, REFUSAL]}),
        ({"role": "assistant", "content": "x", "refusal": None}, {"role": "assistant", "content": "x"}),
        ({"role": "assistant", "content": "x", "refusal": 3}, {"role": "assistant", "content": "x"}),
        ({"role": "assistant", "content": 3, "refusal": "No."}, {"role": "assistant", "content": 3}),
    ],
)  # fmt: skip
def test_what_chat_once_called_otherwise_is_carried(message: Any, expected: Any) -> None:
    assert plan({"messages": [message]})[0]["messages"] == [expected]


def test_the_request_that_came_is_left_as_it_was() -> None:
    fields = {"messages": [{"reasoning_content": "x"}]}
    plan(fields)
    assert fields == {"messages": [{"reasoning_content": "x"}]}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_an_answer_cannot_be_longer_than_the_context(name: str) -> None:
    assert plan({name: 32_000})[0][name] == 4096
    assert plan({name: 100})[0][name] == 100
    assert plan({name: "many"})[0][name] == "many"


@pytest.mark.parametrize(
    ("fields", "comment", "options", "wish"),
    [
        ({"stream": True}, False, None, Wish()),
        ({"stream": True}, True, {"include_usage": True}, Wish(usage_comment=True)),
        ({"stream": False}, True, None, Wish(usage_comment=True)),
        (
            {"stream": True, "stream_options": {"include_usage": True}},
            True,
            {"include_usage": True},
            Wish(usage_chunk=True, usage_comment=True),
        ),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            True,
            {"continuous_usage_stats": True, "include_usage": True},
            Wish(usage_comment=True),
        ),
        ({"stream": True, "stream_options": 3}, True, 3, Wish(usage_comment=True)),
    ],
)
def test_vllm_counts_whenever_somebody_wants_the_usage(
    fields: dict[str, Any], comment: bool, options: Any, wish: Wish
) -> None:
    asked, found = plan(fields, usage_comment=comment)
    assert (asked.get("stream_options"), found) == (options, wish)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, False), (b"", False), (b"0", False), (b"no", False), (b"1", True), (b" TRUE ", True), (b"yes", True)],
)  # fmt: skip
def test_a_header_says_yes_in_three_ways(value: bytes | None, expected: bool) -> None:
    assert is_yes(value) is expected


@pytest.mark.parametrize(
    ("named", "expected"), [("pirate", "pirate"), ("other", "m"), (None, "m"), (["pirate"], "m")]
)
def test_an_adapter_is_asked_for_by_its_own_name(named: Any, expected: str) -> None:
    assert plan({"model": named})[0]["model"] == expected


@pytest.mark.parametrize(
    "encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}]
)
def test_embeddings_are_numbers_or_base64(encoding: dict[str, Any]) -> None:
    assert plan_embedding(encoding) == encoding


@pytest.mark.parametrize("encoding", ["bytes", "nope", 3, ["float"]])
def test_another_encoding_is_refused(encoding: Any) -> None:
    with pytest.raises(InvalidRequestBodyError) as raised:
        plan_embedding({"encoding_format": encoding})
    assert raised.value.param == "encoding_format"


def test_a_field_that_is_null_was_not_sent() -> None:
    assert drop_nulls({"a": None, "b": 0, "c": ""}) == {"b": 0, "c": ""}


@pytest.mark.parametrize(
    ("fields", "others", "names"),
    [
        ({"model": "m", "seed": 1}, [], ()),
        ({"model": "m", "store": True, "audio": {"voice": "a"}}, [], ("audio", "store")),
        ({"store": None, "functions": []}, [], ()),
        ({"store": False}, ["tools.x", "store", "tools.x"], ("store", "tools.x")),
        ({"a\r\nset-cookie: b": 1, "c d": 2}, [], ("other",)),
        ({"parts": [{"text": "a"}, {"text": "b", "b": None}, "c", [{}]], "model": {"x": 1}}, [], ()),
        ({"parts": [{"z": 1}, {"y": 1, "sub": {"x": 1}}, {"z": 2}], "a": 1}, [], ("a", "parts.sub.x", "parts.y", "parts.z")),
        ({"parts": {"sub": [{"a b": 1}]}}, [], ("parts.sub.other",)),
    ],
)  # fmt: skip
def test_what_nothing_is_made_of_is_named(
    fields: dict[str, Any], others: list[str], names: tuple[str, ...]
) -> None:
    parts = {"text": None, "sub": {"in": None}}
    assert name_unread(fields, {"model": None, "seed": None, "parts": parts}, others) == names


def test_there_is_a_bound_to_the_names() -> None:
    assert len(name_unread({f"t{n}": n for n in range(99)}, {})) == 32
