# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever stream an upstream makes, the client's events are legal and say the same as the whole answer would.

`make_stream` draws from all streams that OpenAI's protocol allows, and breaks some of them off. `check` reads
events by Anthropic's protocol alone, and shares no code with what made them.
"""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_core.errors import UpstreamProtocolError
from cortex_gateway.dialects.anthropic_stream import AnthropicStream

DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
FIELDS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class IllegalError(AssertionError):
    """The events break Anthropic's protocol."""


def need(holds: bool, what: str) -> None:
    if not holds:
        raise IllegalError(what)


def check(out: bytes) -> dict[str, Any]:
    """Read a stream of Anthropic's; returns what it says. Raises IllegalError."""
    message: dict[str, Any] | None = None
    blocks: list[dict[str, Any]] = []
    is_open = signed = False
    ended = ""
    need(out == b"" or out.endswith(b"\n\n"), "the last event is not whole")
    for raw in out.split(b"\n\n")[:-1]:
        need(not ended, f"something after {ended}")
        name_line, data_line = raw.split(b"\n")
        event = json.loads(data_line.removeprefix(b"data: "))
        kind = event["type"]
        need(name_line == b"event: " + kind.encode(), "name and type differ")
        if kind == "ping":
            continue
        if kind == "error":
            need(isinstance(event["error"]["message"], str), "an error says why")
            ended = kind
        elif kind == "message_start":
            need(message is None, "a second message")
            message = event["message"]
            need(message["content"] == [] and message["stop_reason"] is None, "begins with an end")
        else:
            need(message is not None, f"{kind} before the message")
            assert message is not None
            if kind == "content_block_start":
                need(not is_open, "a block begins inside another")
                need(event["index"] == len(blocks), "indices count up")
                need("message_delta" not in message, "a block after the end")
                blocks.append({**event["content_block"], "said": []})
                is_open, signed = True, False
            elif kind == "content_block_delta":
                need(is_open and event["index"] == len(blocks) - 1, "a delta for no open block")
                delta = event["delta"]
                if delta["type"] == "signature_delta":
                    need(blocks[-1]["type"] == "thinking" and not signed, "a wrong signature")
                    blocks[-1]["signature"] = delta["signature"]
                    signed = True
                else:
                    need(delta["type"] == DELTAS[blocks[-1]["type"]], "a delta of another kind")
                    need(not signed, "thinking after its signature")
                    blocks[-1]["said"].append(delta[FIELDS[delta["type"]]])
            elif kind == "content_block_stop":
                need(is_open and event["index"] == len(blocks) - 1, "a stop for no open block")
                need(blocks[-1]["type"] != "thinking" or signed, "thinking without signature")
                is_open = False
            elif kind == "message_delta":
                need(not is_open, "the message ends inside a block")
                need("message_delta" not in message, "two ends")
                need(event["delta"]["stop_reason"] is not None, "an end without reason")
                message = {**message, **event["delta"], "message_delta": True}
                message["usage"] = {**message["usage"], **event["usage"]}
            elif kind == "message_stop":
                need(message.pop("message_delta", False), "a stop before the end")
                ended = kind
            else:
                raise IllegalError(f"an unknown event {kind}")
    need(bool(ended), "no end")
    return {"ended": ended, "message": message, "blocks": blocks}


def say(blocks: list[dict[str, Any]]) -> tuple[str, str, list[Any]]:
    """The text, the thinking and the calls of a streamed message."""
    text = "".join("".join(block["said"]) for block in blocks if block["type"] == "text")
    thought = "".join("".join(block["said"]) for block in blocks if block["type"] == "thinking")
    calls = []
    for block in blocks:
        if block["type"] == "tool_use":
            given_input = "".join(block["said"])
            calls.append((block["id"], block["name"], read_input(given_input)))
    return text, thought, calls


def read_input(said: str) -> Any:
    if not said.strip():
        return {}
    try:
        return json.loads(said)
    except ValueError:
        return {"INVALID_JSON": said}


class Stream:
    """One answer of an upstream.

    Attributes:
        raw: as a stream.
        whole: the same as a body.
        breaks: it does not come to a regular end.
    """

    def __init__(self, raw: bytes, whole: dict[str, Any], breaks: bool) -> None:
        self.raw = raw
        self.whole = whole
        self.breaks = breaks


TEXTS = ["a", " b", "\n", "ü€😀", '"quoted"', "\\", "\u2028", "data: x\n\n", "<tool_call>", "}"]
ARGUMENTS = [
    "",
    "null",
    "{}",
    '{"a": 1.0}',
    ' {"b": "}", "c": {"d": [{}, "\\n\\"", null]}}',
    '{"path": "x", "text": "line\\nline {} ü"}\n',
]
ENDS = ["regular"] * 6 + ["no done", "no finish", "neither", "error", "cut", "garbage"]


def make_call(rng: random.Random, number: int, truncated: bool) -> tuple[Any, list[Any]]:
    """A call, and the pieces that it comes in."""
    arguments = rng.choice(ARGUMENTS)
    if truncated:
        arguments = arguments[: rng.randrange(len(arguments) + 1)]
    call = {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": f"f{number}", "arguments": arguments},
    }
    cuts = sorted(rng.randrange(len(arguments) + 1) for _ in range(rng.randrange(4)))
    parts = [arguments[a:b] for a, b in zip([0, *cuts], [*cuts, len(arguments)], strict=True)]
    pieces: list[Any] = []
    for part in parts:
        head = {} if pieces else {"id": call["id"], "type": "function"}
        function = {"arguments": part} if pieces else {"name": f"f{number}", "arguments": part}
        pieces.append({"tool_calls": [{"index": number, **head, "function": function}]})
    return call, pieces


def weave(rng: random.Random, strands: list[list[Any]], turns: float) -> list[Any]:
    """The strands as one, each in its own order; `turns` is how likely another one goes on."""
    woven = []
    at = begun = 0
    while left := [number for number, strand in enumerate(strands) if strand]:
        if at not in left or rng.random() < turns:
            # They begin in their order, whatever they do later.
            at = rng.choice([number for number in left if number <= begun] or left[:1])
        begun = max(begun, at + 1)
        woven.append(strands[at].pop(0))
    return woven


def make_stream(rng: random.Random) -> Stream:
    """Any answer that OpenAI's protocol allows."""
    finish = rng.choice(["stop", "length", "tool_calls", "content_filter"])
    texts = [rng.choice(TEXTS) for _ in range(rng.randrange(4))]
    thoughts = [rng.choice(TEXTS) for _ in range(rng.randrange(4))]
    made = [make_call(rng, n, finish == "length") for n in range(rng.choice([0, 0, 1, 2, 3]))]
    name = rng.choice(["reasoning_content", "reasoning"])
    thinking = [{name: thought} for thought in thoughts]
    saying = [{"content": text} for text in texts]
    calling = weave(rng, [pieces for _, pieces in made], rng.choice([0, 0, 0.5]))
    strands = [thinking, saying, calling]
    if rng.random() < 0.3:
        rng.shuffle(strands)
    deltas = weave(rng, strands, rng.choice([0, 0, 0.3]))
    stop_reason = rng.choice([None, None, 7, "END"]) if finish == "stop" else None
    usage: dict[str, Any] = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    if rng.random() < 0.5:
        usage |= {
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
    whole = {
        "id": "chatcmpl-9",
        "model": "org/m",
        "choices": [
            {
                "message": {
                    "content": "".join(texts) or None,
                    name: "".join(thoughts) or None,
                    "tool_calls": [call for call, _ in made],
                },
                "finish_reason": finish,
                "stop_reason": stop_reason,
            }
        ],
        "usage": usage,
    }
    end = rng.choice(ENDS)
    events = make_events(rng, deltas, finish, stop_reason, usage, end)
    raw = b"".join(events)
    if end == "cut":
        raw = raw[: rng.randrange(len(raw) - len(events[-1]) + 1)]
    return Stream(raw, whole, end != "regular")


def make_events(
    rng: random.Random, deltas: list[Any], finish: str, stop_reason: Any, usage: Any, end: str
) -> list[bytes]:
    merges = rng.choice([0, 0, 0.5])
    groups: list[dict[str, Any]] = []
    if rng.random() < 0.7:
        groups.append({"role": "assistant", "content": rng.choice(["", None])})
    for delta in deltas:
        # What stands in one delta is read as thinking, then text, then calls.
        order = ["role", "reasoning", "reasoning_content", "content", "tool_calls"]
        last = max((order.index(key) for key in groups[-1]), default=0) if groups else 99
        if order.index(next(iter(delta))) > last and rng.random() < merges:
            groups[-1] |= delta
        else:
            groups.append(dict(delta))
    shell = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": 1, "model": "org/m"}
    last_choice = {"index": 0, "delta": {}, "finish_reason": finish, "stop_reason": stop_reason}
    chunks = [
        {**shell, "choices": [{"index": 0, "delta": group, "finish_reason": None}], "usage": None}
        for group in groups
    ]
    if end not in ("no finish", "neither"):
        chunks.append({**shell, "choices": [last_choice]})
    chunks.append({**shell, "choices": [], "usage": usage})
    broken_at = rng.randrange(len(chunks))
    line_end = rng.choice(["\n", "\n", "\r\n", "\r"])
    ascii_only = rng.random() < 0.5
    events = []
    for at, chunk in enumerate(chunks):
        if end == "error" and at == broken_at:
            events.append('data: {"error": {"message": "no memory", "code": 500}}\n\n')
        if end == "garbage" and at == broken_at:
            events.append("data: {]\n\n")
        if rng.random() < 0.1:
            events.append(": waiting\n\n")
        events.append(f"data: {json.dumps(chunk, ensure_ascii=ascii_only)}\n\n")
    if end not in ("no done", "neither"):
        events.append("data: [DONE]\n\n")
    return [event.replace("\n", line_end).encode() for event in events]


def run(parts: list[bytes]) -> bytes:
    passing = AnthropicStream("node-1", "req-1")
    out = b""
    try:
        for part in parts:
            out += passing.feed(part)
        return out + passing.close()
    except UpstreamProtocolError as error:
        return out + passing.fail(error)


def check_stream(rng: random.Random, stream: Stream, out: bytes) -> None:
    said = check(out)
    assert (said["ended"] == "error") is stream.breaks
    passing = AnthropicStream("node-1", "req-1")
    whole = json.loads(passing.whole(200, json.dumps(stream.whole).encode())[1])
    text, thought, calls = say(said["blocks"])
    whole_text = "".join(b["text"] for b in whole["content"] if b["type"] == "text")
    whole_thought = "".join(b["thinking"] for b in whole["content"] if b["type"] == "thinking")
    if stream.breaks:
        assert whole_text.startswith(text)
        assert whole_thought.startswith(thought)
        return
    assert (text, thought) == (whole_text, whole_thought)
    assert calls == [
        (b["id"], b["name"], b["input"]) for b in whole["content"] if b["type"] == "tool_use"
    ]
    for name in ("id", "model", "role", "stop_reason", "stop_sequence", "stop_details", "usage"):
        assert said["message"][name] == whole[name], name


def check_random(rng: random.Random) -> None:
    """One stream, whole and at some cut."""
    stream = make_stream(rng)
    out = run([stream.raw])
    check_stream(rng, stream, out)
    cut = rng.randrange(len(stream.raw) + 1)
    assert run([stream.raw[:cut], stream.raw[cut:]]) == out


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_events_are_legal_and_say_what_the_whole_answer_says(rng: random.Random) -> None:
    check_random(rng)


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_events_do_not_depend_on_cuts(rng: random.Random) -> None:
    raw = make_stream(rng).raw
    out = run([raw])
    assert run([raw[at : at + 1] for at in range(len(raw))]) == out
    for cut in range(len(raw)):
        assert run([raw[:cut], raw[cut:]]) == out, cut


START = b'event: message_start\ndata: {"type":"message_start","message":{"content":[],"stop_reason":null,"usage":{}}}\n\n'
BLOCK = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":{"type":"%b"}}\n\n'
TEXT = BLOCK % (0, b"text")
STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
END = b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{}}\n\n'
LAST = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


@pytest.mark.parametrize(
    ("out", "what"),
    [
        (b"", "no end"),
        (START + END, "no end"),
        (START + START, "a second message"),
        (TEXT, "before the message"),
        (START + TEXT + BLOCK % (1, b"text"), "inside another"),
        (START + TEXT + END, "ends inside a block"),
        (START + STOP, "a stop for no open block"),
        (START + BLOCK % (1, b"text"), "count up"),
        (START + BLOCK % (0, b"thinking") + STOP, "without signature"),
        (START + END + END, "two ends"),
        (START + END + TEXT, "after the end"),
        (START + LAST, "a stop before the end"),
        (START + END + LAST + LAST, "something after message_stop"),
        (START + END + LAST[:-1], "not whole"),
    ],
)
def test_the_checker_sees_what_is_illegal(out: bytes, what: str) -> None:
    with pytest.raises(IllegalError, match=what):
        check(out)
