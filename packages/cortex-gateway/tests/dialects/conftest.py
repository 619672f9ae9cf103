# SPDX-License-Identifier: GPL-3.0-or-later
"""All streams that OpenAI chat allows, some of them broken off, beside what the same answer is as a whole."""

import json
import random
from typing import Any

import pytest


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


@pytest.fixture(scope="session", name="make_stream")
def _make_stream() -> Any:
    return make_stream
