# SPDX-License-Identifier: GPL-3.0-or-later
"""The Responses API: what goes in, what comes out, whole and event by event."""

from typing import Any

import msgspec
import pytest

from cortex_core.errors import (
    ChainedConversationError,
    EngineDiedError,
    InvalidRequestBodyError,
)
from neuron.host.engines.vllm_responses import (
    ResponseStream,
    name_dropped,
    plan_response,
    read_told,
    shape_response,
)

USER = {"type": "message", "role": "user", "content": "x"}


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
    ],
)
def test_what_continues_something_kept_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ChainedConversationError):
        plan_response({"input": "x", **fields})


def test_nothing_is_answered_later() -> None:
    with pytest.raises(InvalidRequestBodyError) as raised:
        plan_response({"input": "x", "background": True})
    assert raised.value.param == "background"
    assert "background" not in plan_response({"input": "x", "background": False})


@pytest.mark.parametrize("store", [{}, {"store": True}, {"store": False}])
def test_nothing_is_kept_whatever_is_asked(store: dict[str, Any]) -> None:
    assert plan_response({"input": "x", **store}) == {"input": "x", "store": False}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (USER, USER),
        ({"role": "user", "content": "x"}, USER),
        ({"role": "user", "content": None}, {**USER, "content": ""}),
        (
            {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {**USER, "content": [{"type": "input_text", "text": "x"}]},
        ),
        (
            {
                "id": "msg_1",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "a"},
                    {"type": "refusal", "refusal": "b"},
                    {"type": "other"},
                    "c",
                ],
            },
            {"type": "message", "role": "assistant", "content": "ab"},
        ),
        (
            {"type": "message", "role": "assistant", "content": []},
            {"type": "message", "role": "assistant", "content": ""},
        ),
        (
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"text": "hm"}]},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"text": "hm"}]},
        ),
        (
            {"type": "reasoning", "content": [{"text": "hm"}], "encrypted_content": "AAA"},
            {"type": "reasoning", "summary": [], "content": [{"text": "hm"}]},
        ),
        ({"type": "reasoning", "summary": [], "encrypted_content": "AAA"}, None),
        ({"type": "web_search_call", "id": "ws_1"}, None),
        (
            {"type": "function_call_output", "call_id": "c", "output": "x"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
        ),
        ({"type": ["message"]}, {"type": ["message"]}),
        ("x", "x"),
    ],
)
def test_items_come_as_clients_send_them(item: Any, expected: Any) -> None:
    assert plan_response({"input": [item]})["input"] == ([] if expected is None else [expected])


def test_what_is_to_be_told_of_the_tools_of_other_servers_is_left_out() -> None:
    include = ["web_search_call.results", "message.output_text.logprobs", 3]
    assert plan_response({"input": "x", "include": include})["include"] == include[1:]
    assert list(name_dropped({"input": "x", "include": include})) == ["include"]
    assert list(name_dropped({"input": "x", "include": include[1:]})) == []


def message(text: str, **fields: Any) -> dict[str, Any]:
    part: dict[str, Any] = {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": None,
    }
    return {"type": "message", "id": "msg_1", "content": [part], **fields}


def reasoning(text: str) -> dict[str, Any]:
    return {
        "type": "reasoning",
        "id": "rs_1",
        "content": [{"type": "reasoning_text", "text": text}],
    }


CALL = {
    "type": "function_call",
    "id": "fc_1",
    "name": "f",
    "arguments": "{}",
    "status": "completed",
}


def response(*output: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "status": "completed", "output": list(output), **fields}


def texts(output: list[Any]) -> list[str]:
    return [part["text"] for item in output for part in item.get("content", [])]


def test_a_whole_response_is_without_stray_white_space() -> None:
    shaped = shape_response(response(reasoning("\nhm.\n"), message("\n\nYes. \n")))
    assert texts(shaped["output"]) == ["hm.", "Yes."]
    assert shaped["output"][1]["content"][0]["logprobs"] == []


def test_an_item_without_text_is_none() -> None:
    shaped = shape_response(response(reasoning("\n\n"), message("\n"), CALL))
    assert shaped["output"] == [CALL]


def test_fields_that_clients_expect_are_there_and_those_of_the_engine_are_not() -> None:
    shaped = shape_response(
        response(metadata=None, text=None, top_logprobs=None, kv_transfer_params=None)
    )
    assert shaped["metadata"] == {}
    assert shaped["text"] == {"format": {"type": "text"}}
    assert shaped["top_logprobs"] == 0
    assert shaped["error"] is None
    assert shaped["store"] is False
    assert "kv_transfer_params" not in shaped
    for name in ("completed_at", "prompt_cache_key", "safety_identifier"):
        assert shaped[name] is None
    assert shape_response(response(metadata={"a": "b"}))["metadata"] == {"a": "b"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, {"text": {"format": {"type": "text"}}, "tool_choice": "auto"}),
        (
            {"text": 3, "tool_choice": None},
            {"text": {"format": {"type": "text"}}, "tool_choice": "auto"},
        ),
        (
            {"text": {"verbosity": "low", "format": None}, "tool_choice": {"type": "web_search"}},
            {
                "text": {"format": {"type": "text"}, "verbosity": "low"},
                "tool_choice": {"type": "web_search"},
            },
        ),
    ],
)
def test_what_was_asked_is_told_again(fields: dict[str, Any], told: dict[str, Any]) -> None:
    assert read_told(fields) == told
    shaped = shape_response(response(tool_choice="none", text=None), told)
    assert {name: shaped[name] for name in told} == told


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_the_last_item_of_a_response_that_was_cut_off_is_cut_off(status: str) -> None:
    output = [reasoning("hm") | {"status": None}, message("a", status="completed"), message("\n")]
    shaped = shape_response(response(*output, status=status))
    assert [item["status"] for item in shaped["output"]] == ["completed", status]


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_a_stream_that_was_cut_off_ends_in_an_item_that_was(status: str) -> None:
    out = run(
        *item_events(0, reasoning(""), ["hm"]),
        *call_events(1),
        *item_events(2, message(""), ["\n"]),
        {"type": "response.completed", "response": response(reasoning("hm"), CALL, status=status)},
    )
    ends = [event["item"] for event in out if event["type"] == "response.output_item.done"]
    assert ends == out[-1]["response"]["output"]
    assert [item["status"] for item in ends] == ["completed", status]


def item_events(index: int, item: dict[str, Any], deltas: list[str]) -> list[dict[str, Any]]:
    """The events of one item of text, as the engine makes them."""
    kind = "output_text" if item["type"] == "message" else "reasoning_text"
    text = "".join(deltas)
    at = {"output_index": index, "item_id": item["id"], "content_index": 0}
    empty = {**item, "content": []}
    part = {**item["content"][0], "text": text}
    return [
        {"type": "response.output_item.added", "output_index": index, "item": empty},
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        *({"type": f"response.{kind}.delta", **at, "delta": delta} for delta in deltas),
        {"type": f"response.{kind}.done", **at, "text": text},
        {"type": "response.content_part.done", **at, "part": part},
        {
            "type": "response.output_item.done",
            "output_index": index,
            "item": {**item, "content": [part]},
        },
    ]


def call_events(index: int) -> list[dict[str, Any]]:
    return [
        {"type": "response.output_item.added", "output_index": index, "item": CALL},
        {
            "type": "response.function_call_arguments.delta",
            "output_index": index,
            "item_id": "fc_1",
            "delta": "{}",
        },
        {
            "type": "response.function_call_arguments.done",
            "output_index": index,
            "item_id": "fc_1",
            "arguments": "{}",
        },
        {"type": "response.output_item.done", "output_index": index, "item": CALL},
    ]


def run(*events: dict[str, Any]) -> list[dict[str, Any]]:
    """The events that go out, and that each is written as it should be."""
    stream = ResponseStream()
    out = []
    for number, event in enumerate(events):
        raw = msgspec.json.encode({**event, "sequence_number": number})
        written = stream.feed(f"event: {event['type']}\ndata: {raw.decode()}\n\n".encode())
        for one in written.split(b"\n\n")[:-1]:
            name, data = one.split(b"\n")
            fields = msgspec.json.decode(data.removeprefix(b"data: "))
            assert name.decode() == f"event: {fields['type']}"
            out.append(fields)
    assert [event["sequence_number"] for event in out] == list(range(len(out)))
    return out


def deltas(events: list[dict[str, Any]], kind: str) -> list[str]:
    return [event["delta"] for event in events if event["type"] == f"response.{kind}.delta"]


def test_a_stream_tells_reasoning_and_text_without_stray_white_space() -> None:
    thought, spoken = ["\n", "I ", "see", ".", "\n"], ["\n\n", "Yes", ",\n", "sir", " ", "\n"]
    out = run(
        {"type": "response.created", "response": response(status="in_progress")},
        *item_events(0, reasoning(""), thought),
        *item_events(1, message(""), spoken),
        {
            "type": "response.completed",
            "response": response(reasoning("".join(thought)), message("".join(spoken))),
        },
    )
    assert deltas(out, "reasoning_text") == ["I", " see", "."]
    assert deltas(out, "output_text") == ["Yes", ",", "\nsir"]
    done = [event for event in out if "text" in event]
    assert [event["text"] for event in done] == ["I see.", "Yes,\nsir"]
    parts = [event["part"] for event in out if event["type"] == "response.content_part.done"]
    assert [part["text"] for part in parts] == ["I see.", "Yes,\nsir"]
    items = [event["item"] for event in out if event["type"] == "response.output_item.done"]
    assert texts(items) == ["I see.", "Yes,\nsir"]
    assert texts(out[-1]["response"]["output"]) == ["I see.", "Yes,\nsir"]


def test_an_item_without_text_leaves_no_gap_in_a_stream() -> None:
    out = run(
        *item_events(0, reasoning(""), ["hm"]),
        *item_events(1, message(""), ["\n", "\n"]),
        *call_events(2),
    )
    assert {event["output_index"] for event in out} == {0, 1}
    assert not any(event["type"].startswith("response.output_text") for event in out)
    assert out[-1]["type"] == "response.function_call_arguments.done"


def test_a_response_that_was_cut_off_ends_in_an_event_of_its_own() -> None:
    (out,) = run({"type": "response.completed", "response": response(status="incomplete")})
    assert out["type"] == "response.incomplete"


def test_an_error_is_an_event_with_the_next_number() -> None:
    stream = ResponseStream()
    for event in item_events(0, message(""), ["a"])[:3]:
        stream.feed(b"data: " + msgspec.json.encode(event) + b"\n\n")
    name, data, *_ = stream.fail(EngineDiedError(model="m", reason="gone")).split(b"\n")
    assert name == b"event: error"
    told = msgspec.json.decode(data.removeprefix(b"data: "))
    assert (told["type"], told["code"], told["sequence_number"]) == ("error", "engine_died", 3)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"input": "x", "store": False, "tools": [{"type": "function"}, {"type": "custom"}]}, []),
        ({"input": "x", "store": True}, ["store"]),
        ({"input": "x", "tools": [{"type": "web_search"}] * 2}, ["tools.web_search"]),
        ({"input": [{"role": "user", "content": "a"}, {"type": "web_search_call"}]}, ["input.web_search_call"]),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}]}, ["input.reasoning.encrypted_content"]),
        ({"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}], "encrypted_content": "x"}]}, []),
        ({"input": [{"type": "reasoning", "summary": []}]}, []),
        ({"input": [{"type": "a\r\nset-cookie: b"}]}, ["input.other"]),
        ({"input": 3, "tools": 4, "text": 5}, []),
        ({"input": [{**USER, "phase": "commentary", "id": "msg_1", "status": None}]}, ["input.phase"]),
        ({"input": [{**USER, "content": [{"type": "input_image", "file_id": "file_1", "detail": "low"}]}]}, ["input.content.file_id"]),
        ({"input": [message("a", role="user", annotations=[])]}, []),
        ({"input": [CALL, {"type": "web_search_call", "action": {}}]}, ["input.web_search_call"]),
        ({"input": "x", "tools": [{"type": "function", "name": "f", "strict": True, "defer_loading": True}]}, ["tools.defer_loading"]),
        ({"input": "x", "tools": [{"type": "web_search", "filters": {"a": 1}}]}, ["tools.web_search"]),
        ({"input": "x", "service_tier": "auto", "max_tool_calls": None, "text": {"format": {"type": "text"}}}, []),
        ({"input": "x", "service_tier": "flex", "max_tool_calls": 1, "text": {"verbosity": "low"}},
         ["max_tool_calls", "service_tier", "text.verbosity"]),
    ],
)  # fmt: skip
def test_what_is_left_out_is_named(fields: dict[str, Any], names: list[str]) -> None:
    assert list(dict.fromkeys(name_dropped(fields))) == names
