# SPDX-License-Identifier: GPL-3.0-or-later
"""Exact streams. That every stream is legal is in test_anthropic_grammar.py."""

from typing import Any

import msgspec
import pytest

from cortex_core import sse
from cortex_core.errors import EngineDiedError, UpstreamProtocolError
from cortex_gateway.dialects.anthropic_parts import SIGNATURE
from cortex_gateway.dialects.anthropic_stream import AnthropicStream

encode = msgspec.json.encode


def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    choice |= {name: fields.pop(name) for name in list(fields) if name == "stop_reason"}
    return sse.write_data(encode({"id": "chatcmpl-1", "model": "m", "choices": [choice], **fields}))


def call(index: int, arguments: str, call_id: str | None = None, name: str | None = None) -> Any:
    piece = {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}
    return {"tool_calls": [piece]}


ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk(finish="stop")
USAGE = sse.write_data(
    encode(
        {
            "id": "chatcmpl-1",
            "choices": [],
            "usage": {
                "prompt_tokens": 10,
                "completion_tokens": 3,
                "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
        }
    )
)


def run(stream: bytes) -> bytes:
    """What the client gets, as the relay makes it."""
    return fed([stream])


def fed(parts: list[bytes]) -> bytes:
    passing = AnthropicStream("node-1", "req-1")
    out = b""
    try:
        for part in parts:
            out += passing.feed(part)
        return out + passing.close()
    except UpstreamProtocolError as error:
        return out + passing.fail(error)


def read(out: bytes) -> list[Any]:
    events = []
    for raw in sse.Splitter().feed(out):
        event = sse.read_event(raw)
        assert event.data is not None
        fields = msgspec.json.decode(event.data)
        assert event.event.decode() == fields["type"]
        events.append(fields)
    return events


def shorten(events: list[Any]) -> list[str]:
    """Each event in a word or two."""
    lines = []
    for event in events:
        match event["type"].removeprefix("content_block_"):
            case "start":
                lines.append(f"{event['index']} {event['content_block']['type']}")
            case "delta":
                kind, said = [event["delta"][name] for name in event["delta"]]
                lines.append(f"{event['index']} {kind.removesuffix('_delta')} {said}")
            case "stop":
                lines.append(f"{event['index']} stop")
            case "message_delta":
                lines.append(f"end {event['delta']['stop_reason']}")
            case "error":
                lines.append(f"error {event['error']['type']}")
            case other:
                lines.append(other)
    return lines


BEGIN = ["message_start", "ping"]
F = ("call_1", "f")
G = ("call_2", "g")

CASES: dict[str, tuple[list[bytes], list[str]]] = {
    "a text": (
        [ROLE, chunk({"content": "he"}), chunk({"content": "y"}), STOP, USAGE, sse.DONE],
        ["0 text", "0 text he", "0 text y", "0 stop", "end end_turn", "message_stop"],
    ),
    "nothing at all": ([ROLE, STOP, sse.DONE], ["end end_turn", "message_stop"]),
    "thinking, then a text": (
        [
            chunk({"reasoning_content": "h"}),
            chunk({"reasoning": "m"}),
            chunk({"content": "a"}),
            STOP,
            sse.DONE,
        ],
        [
            "0 thinking",
            "0 thinking h",
            "0 thinking m",
            f"0 signature {SIGNATURE}",
            "0 stop",
            "1 text",
            "1 text a",
            "1 stop",
            "end end_turn",
            "message_stop",
        ],
    ),
    "one chunk that says all": (
        [
            chunk({"reasoning": "h", "content": "a", **call(0, "{}", *F)}, "tool_calls"),
            sse.DONE,
        ],
        [
            "0 thinking",
            "0 thinking h",
            f"0 signature {SIGNATURE}",
            "0 stop",
            "1 text",
            "1 text a",
            "1 stop",
            "2 tool_use",
            "2 input_json {}",
            "2 stop",
            "end tool_use",
            "message_stop",
        ],
    ),
    "calls one after the other": (
        [
            chunk({"content": "so"}),
            chunk(call(0, "", *F)),
            chunk(call(0, '{"a":')),
            chunk(call(0, "1}")),
            chunk(call(1, '{"b":2}', *G)),
            chunk(finish="tool_calls"),
            sse.DONE,
        ],
        [
            "0 text",
            "0 text so",
            "0 stop",
            "1 tool_use",
            '1 input_json {"a":',
            "1 input_json 1}",
            "1 stop",
            "2 tool_use",
            '2 input_json {"b":2}',
            "2 stop",
            "end tool_use",
            "message_stop",
        ],
    ),
    "calls to and fro": (
        [
            chunk(call(0, '{"a":', *F)),
            chunk(call(1, '{"b":', *G)),
            chunk({"content": "hm"}),
            chunk(call(1, "2")),
            chunk(call(0, "1}")),
            chunk(call(1, "}")),
            STOP,
            sse.DONE,
        ],
        [
            "0 tool_use",
            '0 input_json {"a":',
            "0 input_json 1}",
            "0 stop",
            "1 tool_use",
            '1 input_json {"b":',
            "1 input_json 2",
            "1 input_json }",
            "1 stop",
            "2 text",
            "2 text hm",
            "2 stop",
            "end tool_use",
            "message_stop",
        ],
    ),
    "calls that are all the first": (
        [
            chunk(call(0, "{}", *F)),
            chunk(call(0, "{}", *G)),
            chunk(finish="tool_calls"),
            sse.DONE,
        ],
        [
            "0 tool_use",
            "0 input_json {}",
            "0 stop",
            "1 tool_use",
            "1 input_json {}",
            "1 stop",
            "end tool_use",
            "message_stop",
        ],
    ),
    "a call whose every piece has another id": (
        [
            chunk(call(0, '{"a"', *F)),
            chunk(call(0, ":1}", "call_9")),
            chunk(finish="tool_calls"),
            sse.DONE,
        ],
        [
            "0 tool_use",
            '0 input_json {"a"',
            "0 input_json :1}",
            "0 stop",
            "end tool_use",
            "message_stop",
        ],
    ),
    "calls that nobody counts": (
        [
            chunk({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": '{"a"'}}]}),
            chunk({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": ":1"}}]}),
            chunk({"tool_calls": [{"function": {"arguments": "}"}}]}),
            chunk({"tool_calls": [{"id": "b", "function": {"name": "g", "arguments": {"b": 2}}}]}),
            chunk(finish="tool_calls"),
            sse.DONE,
        ],
        [
            "0 tool_use",
            '0 input_json {"a"',
            "0 input_json :1",
            "0 input_json }",
            "0 stop",
            "1 tool_use",
            '1 input_json {"b":2}',
            "1 stop",
            "end tool_use",
            "message_stop",
        ],
    ),
    "a stop sequence": (
        [chunk({"content": "a"}), chunk(finish="stop", stop_reason="END"), sse.DONE],
        ["0 text", "0 text a", "0 stop", "end stop_sequence", "message_stop"],
    ),
    "a refusal": (
        [chunk({"refusal": "No."}), STOP, sse.DONE],
        ["0 text", "0 text No.", "0 stop", "end refusal", "message_stop"],
    ),
    "another choice, which nobody asked for": (
        [
            sse.write_data(b'{"choices":[{"index":1,"delta":{"content":"x"}}]}'),
            STOP,
            sse.DONE,
        ],
        ["end end_turn", "message_stop"],
    ),
    "a piece that is null": (
        [sse.write_data(b'{"choices":[{"delta":null,"finish_reason":"stop"}]}'), sse.DONE],
        ["end end_turn", "message_stop"],
    ),
    "a comment keeps the client awake": (
        [ROLE, b": keep-alive\n\n", STOP, sse.DONE],
        ["ping", "end end_turn", "message_stop"],
    ),
    "nothing goes on after the end": (
        [STOP, sse.DONE, chunk({"content": "x"}), b": bye\n\n", sse.DONE],
        ["end end_turn", "message_stop"],
    ),
    "an end without its empty line": (
        [STOP, b"data: [DONE]"],
        ["end end_turn", "message_stop"],
    ),
    "an upstream that ends in the middle": (
        [chunk({"content": "a"})],
        ["0 text", "0 text a", "error api_error"],
    ),
    "an upstream that ends in the middle of an event": (
        [chunk({"content": "a"}), b'data: {"choices":[{"delta":{"con'],
        ["0 text", "0 text a", "error api_error"],
    ),
    "an upstream that says the end, and not why": (
        [chunk({"content": "a"}), sse.DONE],
        ["0 text", "0 text a", "error api_error"],
    ),
    "an upstream that says why, and not the end": ([STOP], ["error api_error"]),
    "an upstream that says why, and then half a thing": (
        [STOP, b"data: [DO"],
        ["error api_error"],
    ),
    "an upstream that gave up": (
        [chunk({"content": "a"}), chunk(finish="abort"), sse.DONE],
        ["0 text", "0 text a", "error api_error"],
    ),
    "an error in the middle": (
        [
            chunk({"content": "a"}),
            sse.write_data(b'{"error":{"message":"no memory","code":503}}'),
            sse.DONE,
        ],
        ["0 text", "0 text a", "error overloaded_error"],
    ),
    "an error that is a word": (
        [ROLE, sse.write_data(b'{"error":"no memory"}'), sse.DONE],
        ["error api_error"],
    ),
    "what is no JSON": (
        [chunk({"content": "a"}), b"data: hello\n\n", STOP, sse.DONE],
        ["0 text", "0 text a", "error api_error"],
    ),
    "arguments of a call that was complete": (
        [chunk(call(0, "{}", *F)), chunk(call(1, "", *G)), chunk(call(0, '{"a":1}'))],
        ["0 tool_use", "0 input_json {}", "0 stop", "1 tool_use", "error api_error"],
    ),
    "a call without a name": (
        [ROLE, chunk(call(0, "{}", "call_1")), STOP, sse.DONE],
        ["error api_error"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_becomes_these_events(case: str) -> None:
    chunks, expected = CASES[case]
    assert shorten(read(run(b"".join(chunks)))) == BEGIN + expected


@pytest.mark.parametrize("case", CASES)
def test_events_do_not_depend_on_cuts(case: str) -> None:
    stream = b"".join(CASES[case][0])
    expected = run(stream)
    for cut in range(len(stream) + 1):
        assert fed([stream[:cut], stream[cut:]]) == expected, cut
    assert fed([stream[at : at + 1] for at in range(len(stream))]) == expected


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_line_ends_do_not_matter(end: bytes) -> None:
    chunks = CASES["calls to and fro"][0]
    stream = b"".join(chunks)
    assert run(stream.replace(b"\n", end)) == run(stream)
    mixed = b"".join(one[:-1] + end for one in chunks)
    assert run(mixed) == run(stream)


def test_the_events_have_all_that_the_schema_requires() -> None:
    out = run(ROLE + chunk(call(0, '{"a":1}', *F)) + chunk(finish="tool_calls") + USAGE + sse.DONE)
    assert read(out) == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "stop_details": None,
                "container": None,
                "usage": {
                    "input_tokens": 0,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "output_tokens": 0,
                    "output_tokens_details": None,
                    "server_tool_use": None,
                    "cache_creation": None,
                    "inference_geo": None,
                    "service_tier": "standard",
                },
            },
        },
        {"type": "ping"},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {
                "type": "tool_use",
                "id": "call_1",
                "name": "f",
                "input": {},
                "caller": {"type": "direct"},
            },
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {
                "stop_reason": "tool_use",
                "stop_sequence": None,
                "stop_details": None,
                "container": None,
            },
            "usage": {
                "input_tokens": 6,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 4,
                "output_tokens": 3,
                "output_tokens_details": None,
                "server_tool_use": None,
            },
        },
        {"type": "message_stop"},
    ]


def test_an_upstream_that_tells_its_usage_at_once_is_believed() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
    assert (
        read(run(chunk({"role": "assistant"}, usage=usage)))[0]["message"]["usage"]["input_tokens"]
        == 7
    )


def test_a_usage_is_kept_whatever_comes_after_it() -> None:
    assert (
        read(run(USAGE + chunk({"content": "a"}, usage=None) + STOP + sse.DONE))[-2]["usage"][
            "output_tokens"
        ]
        == 3
    )


def test_where_no_usage_is_told_deltas_are_counted() -> None:
    out = run(
        chunk({"reasoning": "a"})
        + chunk({"content": "b"})
        + chunk({"content": "c"})
        + STOP
        + sse.DONE
    )
    assert read(out)[-2]["usage"]["output_tokens"] == 3


def test_a_delta_is_a_constant_around_the_text() -> None:
    out = run(chunk({"content": 'a"\n\u2028'}))
    assert (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"a\\"\\n\xe2\x80\xa8"}}\n\n'
    ) in out


def test_a_failure_before_the_message_is_the_error_alone() -> None:
    passing = AnthropicStream("node-1", "req-1")
    out = passing.fail(EngineDiedError(model="m", reason="killed"))
    assert read(out) == [
        {
            "type": "error",
            "error": {
                "type": "api_error",
                "code": "engine_died",
                "message": "The engine of 'm' died: killed.",
                "model": "m",
                "reason": "killed",
            },
            "request_id": "req-1",
        }
    ]
    assert passing.fail(EngineDiedError(model="m", reason="killed")) == b""
    assert passing.close() == b""


def test_a_failure_after_the_end_is_nothing_to_the_client() -> None:
    passing = AnthropicStream("node-1", "req-1")
    passing.feed(STOP + sse.DONE)
    assert passing.fail(EngineDiedError(model="m", reason="killed")) == b""


def test_an_event_without_end_is_the_upstreams_fault() -> None:
    passing = AnthropicStream("node-1", "req-1", max_event_bytes=100)
    with pytest.raises(UpstreamProtocolError, match="more than 100 bytes"):
        passing.feed(b"data: " + b"x" * 100)


def test_an_answer_that_is_no_stream_is_translated_whole() -> None:
    passing = AnthropicStream("node-1", "req-1")
    body = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
    assert msgspec.json.decode(passing.whole(200, body)[1])["id"] == "msg_1"
    error = b'{"error":{"message":"m"}}'
    for status, kind in ((400, "invalid_request_error"), (503, "overloaded_error")):
        assert msgspec.json.decode(passing.whole(status, error)[1])["error"]["type"] == kind
