# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever stream of chat an upstream makes, the events of Responses are legal and say the same as the whole answer.

`check` reads events by OpenAI's protocol alone, and shares no code with what made them.

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
from cortex_gateway.dialects.responses_stream import ResponsesStream

TOLD = {"tools": [], "temperature": 0.5}
ENDS = ("response.completed", "response.incomplete", "response.failed")
PARTS = {"output_text": ("output_text", "text"), "refusal": ("refusal", "refusal")}
PARTS["reasoning_text"] = ("reasoning_text", "text")


class IllegalError(AssertionError):
    """The events break OpenAI's protocol."""


def need(holds: bool, what: str) -> None:
    if not holds:
        raise IllegalError(what)


class Checker:
    """Reads a stream, event by event; each method is what one kind of event must keep to."""

    def __init__(self) -> None:
        self.count = 0
        self.shell: dict[str, Any] = {}
        self.items: list[dict[str, Any]] = []
        self.parts: dict[int, dict[str, Any]] = {}  # open ones, by output index
        self.done: dict[int, dict[str, Any]] = {}
        self.error: dict[str, Any] = {}
        self.ended = ""

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        need(not self.ended, f"something after {self.ended}")
        need(event["sequence_number"] == self.count, "numbers count up from 0")
        self.count += 1
        if self.count <= 2:
            need(kind == ("response.created", "response.in_progress")[self.count - 1], "the start")
            need(event["response"]["status"] == "in_progress", "begins with an end")
            need(event["response"]["output"] == [], "begins with an output")
            self.shell = event["response"]
        elif kind == "error":
            need(isinstance(event["message"], str) and isinstance(event["code"], str), "says why")
            need("param" in event, "a parameter, or null")
            self.error = event
        elif kind in ENDS:
            self.end(event["response"], kind.removeprefix("response."))
            self.ended = kind
        else:
            need(not self.error, "something between an error and the failure")
            self.grow(kind, event)

    def grow(self, kind: str, event: dict[str, Any]) -> None:
        index = event["output_index"]
        if kind == "response.output_item.added":
            need(index == len(self.items), "indices count up")
            need(not self.parts, "an item begins while a part is open")
            item = event["item"]
            need(item["status"] == "in_progress", "an item begins in progress")
            need(not item.get("content") and not item.get("arguments"), "an item begins empty")
            self.items.append({**item, "said": []})
            return
        need(index < len(self.items) and index not in self.done, "an event for no open item")
        item = self.items[index]
        if kind == "response.output_item.done":
            need(index not in self.parts, "an item ends while its part is open")
            self.close(index, event["item"], item)
            return
        need(event["item_id"] == item["id"], "ids are those of the item")
        if kind.startswith("response.function_call_arguments"):
            need(item["type"] == "function_call", "arguments of a call")
            if kind.endswith(".delta"):
                item["said"].append(event["delta"])
            else:
                need(event["arguments"] == "".join(item["said"]), "arguments are what was said")
                item["whole"] = event["arguments"]
            return
        need(event["content_index"] == 0, "one part")
        self.grow_part(kind, event, item, index)

    def grow_part(self, kind: str, event: Any, item: Any, index: int) -> None:
        if kind == "response.content_part.added":
            need(index not in self.parts and "whole" not in item, "one part")
            self.parts[index] = event["part"]
            return
        need(index in self.parts, "an event for no open part")
        part = self.parts[index]
        name, field = PARTS[part["type"]]
        if kind == f"response.{name}.delta":
            item["said"].append(event["delta"])
            need(("logprobs" in event) is (name == "output_text"), "probabilities of text alone")
        elif kind == f"response.{name}.done":
            need(event[field] == "".join(item["said"]), "the whole is what was said")
            item["whole"] = event[field]
        elif kind == "response.content_part.done":
            need(event["part"] == {**part, field: item["whole"]}, "the part is what was said")
            del self.parts[index]
        else:
            raise IllegalError(f"an unknown event {kind}")

    def close(self, index: int, closed: dict[str, Any], item: dict[str, Any]) -> None:
        need(closed["status"] in ("completed", "incomplete"), "an item ends")
        need((closed["id"], closed["type"]) == (item["id"], item["type"]), "the same item")
        if closed["type"] == "function_call":
            need(closed["arguments"] == item["whole"], "a call is what was said")
            need(closed["call_id"] == item["call_id"], "a call keeps its id")
        else:
            (part,) = closed["content"]
            need(part[PARTS[part["type"]][1]] == item["whole"], "an item is what was said")
        self.done[index] = closed

    def end(self, response: dict[str, Any], status: str) -> None:
        need(response["status"] == status, "the event and the status agree")
        need(response["id"] == self.shell["id"], "the same response")
        need(bool(self.error) is (status == "failed"), "an error fails it, and nothing else")
        need((response["error"] is not None) is (status == "failed"), "a failure says why")
        if status != "failed":
            need(len(self.done) == len(self.items), "the response ends while an item is open")
            need(response["output"] == [self.done[at] for at in sorted(self.done)], "the output")
            need(response["usage"] is not None, "the usage")
            cut = response["incomplete_details"] is not None
            need(cut is (status == "incomplete"), "why it is not complete")


def check(out: bytes) -> Checker:
    """Read a stream; raises IllegalError."""
    checker = Checker()
    need(out.endswith(b"\n\n"), "the last event is not whole")
    for raw in out.split(b"\n\n")[:-1]:
        if raw.startswith(b":"):
            continue
        name_line, data_line = raw.split(b"\n")
        event = json.loads(data_line.removeprefix(b"data: "))
        need(name_line == b"event: " + event["type"].encode(), "name and type differ")
        checker.take(event)
    need(bool(checker.ended), "no end")
    return checker


def opened() -> ResponsesStream:
    return ResponsesStream("node-1", "req-1", TOLD, "asked")


def run(parts: list[bytes]) -> bytes:
    passing = opened()
    out = b""
    try:
        for part in parts:
            out += passing.feed(part)
        return out + passing.close()
    except UpstreamProtocolError as error:
        return out + passing.fail(error)


def say(output: list[dict[str, Any]]) -> tuple[dict[str, str], list[Any]]:
    """What is said of each kind, and the calls."""
    texts = dict.fromkeys(PARTS, "")
    calls = []
    for item in output:
        if item["type"] == "function_call":
            calls.append((item["call_id"], item["name"], item["arguments"]))
        for part in item.get("content", []):
            texts[part["type"]] += part[PARTS[part["type"]][1]]
    return texts, calls


def order(output: list[dict[str, Any]]) -> list[str]:
    return [item["type"] for item in output]


def check_random(stream: Any, rng: random.Random) -> None:
    """One stream, whole, at some cut, and event by event."""
    out = run([stream.raw])
    read = check(out)
    assert (read.ended == "response.failed") is stream.breaks
    whole = json.loads(opened().whole(200, json.dumps(stream.whole).encode())[1])
    last = json.loads(out.split(b"\n\n")[-2].split(b"\ndata: ")[1])["response"]
    texts, calls = say(last["output"])
    whole_texts, whole_calls = say(whole["output"])
    if stream.breaks:
        assert all(whole_texts[kind].startswith(text) for kind, text in texts.items())
    else:
        if "usage" not in stream.whole:
            whole["usage"] |= {"output_tokens": stream.pieces, "total_tokens": stream.pieces}
        assert (texts, calls) == (whole_texts, whole_calls)
        left_out = {"output", "created_at"}
        assert {k: v for k, v in last.items() if k not in left_out} == {
            k: v for k, v in whole.items() if k not in left_out
        }
        if order(last["output"]) == order(whole["output"]):
            assert last["output"] == whole["output"]
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


RESPONSE = '{"id":"r","status":"%s","output":%s,"error":null,"incomplete_details":null,"usage":{}}'
ITEM = '{"id":"i","type":"message","status":"%s","content":[%s]}'
PART = '{"type":"output_text","text":"%s"}'


def event(kind: str, number: int, **fields: Any) -> bytes:
    told = ",".join(f'"{name}":{value}' for name, value in fields.items())
    data = f'{{"type":"{kind}","sequence_number":{number},{told}}}'
    return f"event: {kind}\ndata: {data}\n\n".encode()


BEGUN = event("response.created", 0, response=RESPONSE % ("in_progress", "[]")) + event(
    "response.in_progress", 1, response=RESPONSE % ("in_progress", "[]")
)
ADDED = event("response.output_item.added", 2, output_index=0, item=ITEM % ("in_progress", ""))
PLACE: Any = {"output_index": 0, "item_id": '"i"', "content_index": 0}
OPEN = ADDED + event("response.content_part.added", 3, **PLACE, part=PART % "")
DELTA = "response.output_text.delta"


@pytest.mark.parametrize(
    ("out", "what"),
    [
        (b"", "not whole"),
        (BEGUN, "no end"),
        (BEGUN[:-1], "not whole"),
        (event("response.in_progress", 0, response=RESPONSE % ("in_progress", "[]")), "the start"),
        (BEGUN + event("response.completed", 3, response="{}"), "numbers count up"),
        (BEGUN + event("response.completed", 2, response=RESPONSE % ("failed", "[]")), "status agree"),
        (BEGUN + event("response.failed", 2, response=RESPONSE % ("failed", "[]")), "an error fails it"),
        (BEGUN + ADDED + event("response.completed", 3, response=RESPONSE % ("completed", "[]")), "an item is open"),
        (BEGUN + event(DELTA, 2, **PLACE, delta='"a"'), "no open item"),
        (BEGUN + ADDED + event(DELTA, 3, **PLACE, delta='"a"'), "no open part"),
        (BEGUN + OPEN + event("response.output_item.done", 4, output_index=0, item="{}"), "its part is open"),
        (BEGUN + OPEN + event("response.output_text.done", 4, **PLACE, text='"a"'), "is what was said"),
        (BEGUN + event("error", 2, code='"c"', message='"m"', param="null") + ADDED, "numbers count up"),
    ],
)  # fmt: skip
def test_the_checker_sees_what_is_illegal(out: bytes, what: str) -> None:
    with pytest.raises(IllegalError, match=what):
        check(out)
