# SPDX-License-Identifier: GPL-3.0-or-later
"""Streams of chat as events of Responses, exactly; test_responses_grammar.py has all the others."""

import json
from typing import Any

import pytest

from cortex_core import sse
from cortex_core.errors import EngineDiedError, UpstreamProtocolError
from cortex_gateway.dialects.responses_stream import ResponsesStream

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
TOLD: Any = {"instructions": "S", "tools": [], "temperature": None}
SHELL = {
    "id": "resp_1",
    "object": "response",
    "created_at": 7,
    "status": "in_progress",
    "incomplete_details": None,
    "model": "org/m",
    "output": [],
    "usage": None,
    "background": False,
    "completed_at": None,
    "error": None,
    "frequency_penalty": 0,
    "max_tool_calls": None,
    "presence_penalty": 0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "top_logprobs": 0,
    "truncation": "disabled",
    **TOLD,
}
COUNTED = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 14,
}


def opened() -> ResponsesStream:
    return ResponsesStream("node-1", "req_1", TOLD, "asked")


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    shell = {"id": "chatcmpl-1", "created": 7, "model": "org/m"}
    return sse.write_data(json.dumps({**shell, "choices": [choice]}).encode())


def usage(**more: Any) -> bytes:
    return sse.write_data(json.dumps({"choices": [], "usage": {**USAGE, **more}}).encode())


def call(index: int, arguments: str, **head: Any) -> Any:
    function = {"arguments": arguments, **({"name": head.pop("name")} if head else {})}
    return {"tool_calls": [{"index": index, **head, "function": function}]}


def read(out: bytes) -> list[dict[str, Any]]:
    events = []
    for raw in out.split(b"\n\n")[:-1]:
        name, data = raw.split(b"\n")
        events.append(json.loads(data.removeprefix(b"data: ")))
        assert name.decode() == f"event: {events[-1]['type']}"
    assert [event.pop("sequence_number") for event in events] == list(range(len(events)))
    return events


def run(stream: bytes) -> list[dict[str, Any]]:
    passing = opened()
    return read(passing.feed(stream) + passing.close())


def at(index: int, own_id: str, **fields: Any) -> dict[str, Any]:
    return {"output_index": index, "item_id": own_id, **fields}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def message(index: int, text: str, status: str = "completed") -> dict[str, Any]:
    content = [text_part(text)] if text else []
    own_id = f"msg_1_{index}"
    return {
        "id": own_id,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def reasoning(text: str, status: str = "completed") -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}] if text else []
    head = {"id": "rs_1_0", "type": "reasoning", "status": status, "summary": []}
    return {**head, "content": content, "encrypted_content": None}


def called(index: int, call_id: str, name: str, given: str, status: str = "completed") -> Any:
    head = {"id": f"fc_1_{index}", "type": "function_call", "status": status}
    return {**head, "arguments": given, "call_id": call_id, "name": name}


BEGIN = [
    {"type": "response.created", "response": SHELL},
    {"type": "response.in_progress", "response": SHELL},
]


def test_what_looks_like_a_chunk_inside_of_another_line_is_none() -> None:
    events = [chunk(content="One"), b"id: ", chunk(content=" two"), chunk("stop"), sse.DONE]
    passing = opened()
    out = b"".join([passing.feed(event) for event in events]) + passing.close()
    assert read(out)[-1]["response"]["output"] == [message(0, "One")]


def test_thinking_then_text() -> None:
    stream = (
        chunk(role="assistant", content="")
        + chunk(reasoning_content="Hm")
        + chunk(reasoning_content="m.")
        + chunk(content="One ")
        + chunk(content="two")
        + chunk("stop")
        + usage(
            prompt_tokens_details={"cached_tokens": 4},
            completion_tokens_details={"reasoning_tokens": 2},
        )
        + sse.DONE
    )
    thought, said = ({"content_index": 0, **at(0, "rs_1_0")}, {"content_index": 0, **at(1, "msg_1_1")})  # fmt: skip
    counted = {
        **COUNTED,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 2},
    }
    output = [reasoning("Hmm."), message(1, "One two")]
    whole = {**SHELL, "status": "completed", "output": output, "usage": counted}
    assert run(stream) == [
        *BEGIN,
        {"type": "response.output_item.added", "output_index": 0, "item": reasoning("", "in_progress")},
        {"type": "response.content_part.added", **thought, "part": {"type": "reasoning_text", "text": ""}},
        {"type": "response.reasoning_text.delta", **thought, "delta": "Hm"},
        {"type": "response.reasoning_text.delta", **thought, "delta": "m."},
        {"type": "response.reasoning_text.done", **thought, "text": "Hmm."},
        {"type": "response.content_part.done", **thought, "part": {"type": "reasoning_text", "text": "Hmm."}},
        {"type": "response.output_item.done", "output_index": 0, "item": reasoning("Hmm.")},
        {"type": "response.output_item.added", "output_index": 1, "item": message(1, "", "in_progress")},
        {"type": "response.content_part.added", **said, "part": text_part("")},
        {"type": "response.output_text.delta", **said, "logprobs": [], "delta": "One "},
        {"type": "response.output_text.delta", **said, "logprobs": [], "delta": "two"},
        {"type": "response.output_text.done", **said, "logprobs": [], "text": "One two"},
        {"type": "response.content_part.done", **said, "part": text_part("One two")},
        {"type": "response.output_item.done", "output_index": 1, "item": message(1, "One two")},
        {"type": "response.completed", "response": whole},
    ]  # fmt: skip


def test_calls_grow_side_by_side() -> None:
    stream = (
        chunk(**call(0, "", id="a", name="f"))
        + chunk(**call(0, '{"x":'))
        + chunk(**call(1, "null", id="b", name="g"))
        + chunk(**call(0, "1}"))
        + chunk("tool_calls")
        + usage()
        + sse.DONE
    )
    f, g = at(0, "fc_1_0"), at(1, "fc_1_1")
    output = [called(0, "a", "f", '{"x":1}'), called(1, "b", "g", "{}")]
    whole = {**SHELL, "status": "completed", "output": output, "usage": COUNTED}
    arguments = "response.function_call_arguments"
    assert run(stream) == [
        *BEGIN,
        {"type": "response.output_item.added", "output_index": 0, "item": called(0, "a", "f", "", "in_progress")},
        {"type": f"{arguments}.delta", **f, "delta": '{"x":'},
        {"type": "response.output_item.added", "output_index": 1, "item": called(1, "b", "g", "", "in_progress")},
        {"type": f"{arguments}.delta", **f, "delta": "1}"},
        {"type": f"{arguments}.done", **f, "name": "f", "arguments": '{"x":1}'},
        {"type": "response.output_item.done", "output_index": 0, "item": output[0]},
        {"type": f"{arguments}.delta", **g, "delta": "{}"},
        {"type": f"{arguments}.done", **g, "name": "g", "arguments": "{}"},
        {"type": "response.output_item.done", "output_index": 1, "item": output[1]},
        {"type": "response.completed", "response": whole},
    ]  # fmt: skip


def test_a_refusal_is_a_part_of_its_own() -> None:
    events = run(chunk(refusal="No") + chunk(refusal=".") + chunk("stop") + sse.DONE)
    assert [event["type"].removeprefix("response.") for event in events[2:]] == [
        "output_item.added", "content_part.added", "refusal.delta", "refusal.delta", "refusal.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    ((part,),) = [item["content"] for item in events[-1]["response"]["output"]]
    assert part == {"type": "refusal", "refusal": "No."}


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_what_was_cut_off_is_incomplete(finish: str, reason: str) -> None:
    last = run(chunk(content="a") + chunk(finish) + usage() + sse.DONE)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": reason}
    assert last["response"]["output"] == [message(0, "a", "incomplete")]


def test_an_answer_that_says_nothing_has_no_items() -> None:
    assert run(chunk("stop") + sse.DONE)[2]["response"]["output"] == []


def test_without_usage_the_deltas_are_counted() -> None:
    told = run(chunk(content="a") + chunk(content="b") + chunk("stop") + sse.DONE)[-1]
    assert told["response"]["usage"]["output_tokens"] == 2


def test_a_comment_stays_one() -> None:
    assert opened().feed(b": processing\n\n") == b": keep-alive\n\n"


def failed(out: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    error, last = read(out)[-2:]
    assert (error["type"], last["type"]) == ("error", "response.failed")
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": error["code"], "message": error["message"]}
    return error, last["response"]


def test_a_stream_that_breaks_off_fails_and_tells_what_there_was() -> None:
    passing = opened()
    out = passing.feed(chunk(content="a") + chunk(**call(0, '{"x', id="a", name="f")))
    with pytest.raises(UpstreamProtocolError, match="without a finish reason"):
        passing.close()
    out += passing.fail(EngineDiedError(model="m", reason="killed"))
    error, response = failed(out)
    assert (error["code"], error["param"]) == ("engine_died", None)
    assert response["output"] == [message(0, "a"), called(1, "a", "f", '{"x', "incomplete")]
    assert passing.fail(EngineDiedError(model="m", reason="again")) == b""


def test_a_stream_that_never_began_is_a_response_all_the_same() -> None:
    out = opened().fail(EngineDiedError(model="m", reason="killed"))
    assert read(out)[0]["response"]["id"] == "resp_req_1"
    assert read(out)[0]["response"]["model"] == "asked"
    assert failed(out)[1]["output"] == []


@pytest.mark.parametrize(
    ("error", "code", "message_", "param"),
    [
        ('{"code":"context_length_exceeded","message":"long","param":"input"}', "context_length_exceeded", "long", "input"),
        ('{"type":"BadRequestError","code":400,"message":"bad"}', "400", "bad", None),
        ('{"type":"overloaded","message":"later"}', "overloaded", "later", None),
        ('"gone"', "server_error", "gone", None),
        ("{}", "server_error", "The upstream ended its stream in an error, and did not say why.", None),
    ],
)  # fmt: skip
def test_an_error_of_the_upstream_is_told(
    error: str, code: str, message_: str, param: str | None
) -> None:
    passing = opened()
    out = passing.feed(chunk(content="a") + b'data: {"error":' + error.encode() + b"}\n\n")
    told, _ = failed(out + passing.feed(chunk(content="b") + sse.DONE) + passing.close())
    assert (told["code"], told["message"], told["param"]) == (code, message_, param)


def test_a_whole_answer_is_a_response() -> None:
    said = {
        "content": "s",
        "reasoning": "t",
        "tool_calls": [{"id": "a", "function": {"name": "f"}}],
    }
    body = {
        "id": "chatcmpl-1",
        "created": 7,
        "model": "org/m",
        "choices": [{"message": said, "finish_reason": "length"}],
        "usage": USAGE,
    }
    status, answer = opened().whole(200, json.dumps(body).encode())
    assert status == 200
    assert json.loads(answer) == {
        **SHELL,
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [reasoning("t"), message(1, "s"), called(2, "a", "f", "{}", "incomplete")],
        "usage": COUNTED,
    }


def test_an_error_is_the_same_in_both() -> None:
    assert opened().whole(429, b'{"error":{}}') == (429, b'{"error":{}}')


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"choices":[{"message":{},"finish_reason":"abort"}]}']
)
def test_what_is_no_answer_is_the_upstreams_fault(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        opened().whole(200, body)
