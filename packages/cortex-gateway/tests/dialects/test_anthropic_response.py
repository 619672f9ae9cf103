# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import msgspec
import pytest

from cortex_core.errors import UpstreamProtocolError, WrongModalityError, write_openai
from cortex_gateway.dialects.anthropic_parts import SIGNATURE
from cortex_gateway.dialects.anthropic_response import (
    write_message,
    write_stream_error,
    write_upstream_error,
)

encode = msgspec.json.encode
decode = msgspec.json.decode


def answer(finish: Any = "stop", message: Any = None, **fields: Any) -> bytes:
    choice = {"index": 0, "message": message or {"content": "hi"}, "finish_reason": finish}
    choice |= {name: fields.pop(name) for name in list(fields) if name == "stop_reason"}
    return encode({"id": "chatcmpl-1a", "model": "org/m", "choices": [choice], **fields})


def write(body: bytes) -> Any:
    return decode(write_message(body, "node-1", "req-1"))


def call(arguments: Any, call_id: str | None = "call_1", name: str | None = "f") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_an_answer_has_all_that_the_schema_requires() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert write(answer(usage=usage)) == {
        "id": "msg_1a",
        "type": "message",
        "role": "assistant",
        "model": "org/m",
        "content": [{"type": "text", "text": "hi", "citations": []}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {
            "input_tokens": 2,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 8,
            "output_tokens": 3,
            "output_tokens_details": {"thinking_tokens": 2},
            "server_tool_use": None,
            "cache_creation": None,
            "inference_geo": None,
            "service_tier": "standard",
        },
    }


def test_counts_that_are_null_are_none() -> None:
    usage = write(answer(usage={"prompt_tokens": 9, "completion_tokens": None}))["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (9, 0)


def test_an_answer_without_id_is_called_by_the_request() -> None:
    assert write(answer(id=None, model=None))["id"] == "msg_req-1"
    assert write(answer(id="a b/c"))["id"] == "msg_abc"


THINKING = {"type": "thinking", "thinking": "hm", "signature": SIGNATURE}


def tool_use(given: Any, own_id: str = "call_1") -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": own_id,
        "name": "f",
        "input": given,
        "caller": {"type": "direct"},
    }


CONTENT: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "nothing": ({"content": None}, []),
    "an empty text": ({"content": "", "tool_calls": []}, []),
    "thinking before text": (
        {"content": "a", "reasoning_content": "hm"},
        [THINKING, {"type": "text", "text": "a", "citations": []}],
    ),
    "thinking as vLLM has it": ({"content": None, "reasoning": "hm"}, [THINKING]),
    "calls": (
        {"content": None, "tool_calls": [call('{"a": 1.0}'), call("{}", "call_2")]},
        [tool_use({"a": 1.0}), tool_use({}, "call_2")],
    ),
    "no arguments": ({"tool_calls": [call("")]}, [tool_use({})]),
    "arguments of null": ({"tool_calls": [call(" null")]}, [tool_use({})]),
    "arguments that are missing": ({"tool_calls": [call(None)]}, [tool_use({})]),
    "arguments as an object": ({"tool_calls": [call({"a": 1})]}, [tool_use({"a": 1})]),
    "arguments that are cut off": (
        {"tool_calls": [call('{"a": "x')]},
        [tool_use({"INVALID_JSON": '{"a": "x'})],
    ),
    "arguments that are no object": (
        {"tool_calls": [call("[1]")]},
        [tool_use({"INVALID_JSON": "[1]"})],
    ),
    "arguments without end": (
        {"tool_calls": [call('{"a":' * 2000)]},
        [tool_use({"INVALID_JSON": '{"a":' * 2000})],
    ),
    "a call without id": ({"tool_calls": [call("{}", None)]}, [tool_use({}, "toolu_msg_1a_0")]),
    "a call with an id that clients refuse": (
        {"tool_calls": [call("{}", "functions.f:0")]},
        [tool_use({}, "functions_f_0")],
    ),
}


@pytest.mark.parametrize("case", CONTENT)
def test_a_message_becomes_these_blocks(case: str) -> None:
    message, content = CONTENT[case]
    assert write(answer(message=message))["content"] == content


CALLED = {"tool_calls": [call("{}")]}


@pytest.mark.parametrize(
    ("finish", "stop_reason", "message", "expected"),
    [
        ("stop", None, None, ("end_turn", None)),
        ("stop", 151645, None, ("end_turn", None)),
        ("stop", "END", None, ("stop_sequence", "END")),
        ("length", None, None, ("max_tokens", None)),
        ("length", None, CALLED, ("max_tokens", None)),
        ("tool_calls", None, CALLED, ("tool_use", None)),
        ("stop", None, CALLED, ("tool_use", None)),
        ("stop", "END", CALLED, ("stop_sequence", "END")),
        ("content_filter", None, None, ("refusal", None)),
        ("stop", None, {"content": None, "refusal": "No."}, ("refusal", None)),
    ],
)
def test_why_it_stopped(finish: str, stop_reason: Any, message: Any, expected: Any) -> None:
    told = write(answer(finish, message, stop_reason=stop_reason))
    assert (told["stop_reason"], told["stop_sequence"]) == expected
    assert (told["stop_details"] is not None) is (expected[0] == "refusal")


def test_a_refusal_is_told_in_its_words() -> None:
    told = write(answer(message={"content": None, "refusal": "No."}))
    assert told["content"] == [{"type": "text", "text": "No.", "citations": []}]
    assert told["stop_details"] == {"type": "refusal", "category": None, "explanation": None}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", "malformed"),
        (b'{"x":' * 9000, "recursion"),
        (b'{"id":"\xff"}', "codec"),
        (b"[]", "Expected `object`"),
        (b"{}", "without choices"),
        (b'{"error":{"message":"out of memory"}}', "out of memory"),
        (answer("abort"), "finish_reason `abort`"),
        (answer(None), "finish_reason `null`"),
        (answer(message={"tool_calls": [call("{}", name=None)]}), "without a name"),
    ],
)
def test_success_that_is_no_answer_is_the_upstreams_fault(body: bytes, reason: str) -> None:
    with pytest.raises(UpstreamProtocolError, match=reason):
        write_message(body, "node-1", "req-1")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_an_error_has_anthropics_type_for_its_status(status: int, kind: str) -> None:
    body = encode(
        {"error": {"message": "why", "type": "x", "code": "c", "param": None, "node": "n"}}
    )
    assert decode(write_upstream_error(status, body, "r")) == {
        "type": "error",
        "error": {"type": kind, "message": "why", "code": "c", "param": None, "node": "n"},
        "request_id": "r",
    }


def test_an_error_of_another_shape_has_a_message_and_its_facts() -> None:
    body = b'{"detail":"why","node":"n"}'
    told = decode(write_upstream_error(502, body, "r"))["error"]
    assert told == {"type": "api_error", "message": "why", "detail": "why", "node": "n"}


def test_an_embedder_is_told_of_the_path_that_the_client_asked() -> None:
    path = "/v1/chat/completions"
    error = WrongModalityError(model="e", path=path, capabilities="embeddings")
    told = decode(write_upstream_error(422, write_openai(error), "r"))["error"]
    assert "does not serve /v1/messages; it has" in told["message"]
    assert (told["path"], told["capabilities"]) == ("/v1/messages", "embeddings")


def test_a_prompt_that_is_too_long_is_told_in_the_words_clients_look_for() -> None:
    error = {"message": "9 tokens, the model takes 8", "code": "context_length_exceeded"}
    told = decode(write_upstream_error(400, encode({"error": error}), "r"))["error"]
    assert told["message"] == "prompt is too long: 9 tokens, the model takes 8"
    again = decode(write_upstream_error(400, encode({"error": told}), "r"))["error"]
    assert again["message"] == told["message"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 400}, "invalid_request_error"),
        ({"code": 503}, "overloaded_error"),
        ({"code": "engine_died", "type": "api_error"}, "api_error"),
        ({"code": True}, "api_error"),
        ({"code": 7}, "api_error"),
        ({"type": "invalid_request_error"}, "invalid_request_error"),
        ({"type": []}, "api_error"),
    ],
)
def test_an_error_in_a_stream_has_anthropics_type(error: dict[str, Any], kind: str) -> None:
    told = decode(write_stream_error({"message": "why", **error}, "r"))
    assert told["error"]["type"] == kind
    assert told["error"]["message"] == "why"
