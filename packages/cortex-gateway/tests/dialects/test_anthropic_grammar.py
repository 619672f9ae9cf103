# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever stream an upstream makes, the client's events are legal and say the same as the whole answer would.

The fixture `make_stream` draws from all streams that OpenAI's protocol allows, and breaks some off. `check` reads
events by Anthropic's protocol alone, and shares no code with what made them.

CORTEX_STREAMS=100000 tries so many streams instead of two thousand. They are the same each time: what draws them by hypothesis costs
twenty times what is tested.
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
    """An object, or the beginning of one, which no stream can take back; clients break at anything else."""
    if not said.strip():
        return {}
    need(said.lstrip().startswith("{"), "an input that is no object")
    try:
        return json.loads(said)
    except ValueError:
        return {"INVALID_JSON": said}


def run(parts: list[bytes]) -> bytes:
    passing = AnthropicStream("node-1", "req-1")
    out = b""
    try:
        for part in parts:
            out += passing.feed(part)
        return out + passing.close()
    except UpstreamProtocolError as error:
        return out + passing.fail(error)


def check_stream(stream: Any, out: bytes) -> None:
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
    if "usage" not in stream.whole:
        whole["usage"]["output_tokens"] = stream.pieces
    assert (text, thought) == (whole_text, whole_thought)
    assert calls == [
        (b["id"], b["name"], b["input"]) for b in whole["content"] if b["type"] == "tool_use"
    ]
    for name in ("id", "model", "role", "stop_reason", "stop_sequence", "stop_details", "usage"):
        assert said["message"][name] == whole[name], name


def check_random(stream: Any, rng: random.Random) -> None:
    """One stream, whole, at some cut, and event by event."""
    out = run([stream.raw])
    check_stream(stream, out)
    cut = rng.randrange(len(stream.raw) + 1)
    assert run([stream.raw[:cut], stream.raw[cut:]]) == out
    assert run([part + b"\n\n" for part in stream.raw.split(b"\n\n")]) == run(
        [stream.raw + b"\n\n"]
    )


@pytest.mark.slow
def test_events_are_legal_and_say_what_the_whole_answer_says(check_streams: Any) -> None:
    check_streams(check_random)


@pytest.mark.slow
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_events_do_not_depend_on_cuts(make_stream: Any, rng: random.Random) -> None:
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
