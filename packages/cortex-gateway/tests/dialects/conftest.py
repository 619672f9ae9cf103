# SPDX-License-Identifier: GPL-3.0-or-later
"""All streams that OpenAI chat allows and lenient servers send, some broken off, beside what the same answer is as a whole.

Beyond OpenAI's own: vLLM counts usage in each chunk or pads deltas with nulls, Ollama tells the role each time and once
counted every call as the first, llama.cpp opens a call before it knows its name, and who streams no usage tells none.
A name in pieces, and an id that comes after the name, are not made: none of them sends such.
"""

import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

STREAMS = int(os.environ.get("CORTEX_STREAMS", "2000"))


class Stream:
    """One answer of an upstream.

    Attributes:
        raw: as a stream.
        whole: the same as a body.
        breaks: it does not come to a regular end.
        pieces: how many it comes in, which stand for its tokens where it tells no usage.
    """

    def __init__(self, raw: bytes, whole: dict[str, Any], breaks: bool, pieces: int) -> None:
        self.raw = raw
        self.whole = whole
        self.breaks = breaks
        self.pieces = pieces


TEXTS = ["a", " b", "\n", "ü€😀", '"quoted"', "\\", "\u2028", "data: x\n\n", "<tool_call>", "}"]
ARGUMENTS = [
    "",
    "null",
    "{}",
    '{"a": 1.0}',
    ' {"b": "}", "c": {"d": [{}, "\\n\\"", null]}}',
    '{"path": "x", "text": "line\\nline {} ü"}\n',
    '"some text {}"',
    " not even JSON }",
    "[{}]",
]
ENDS = ["regular"] * 6 + ["no done", "no finish", "neither", "error", "cut", "garbage"]
THINKING = [("reasoning_content",), ("reasoning",), ("reasoning_content", "reasoning")]
NUMBERINGS = ["each"] * 6 + ["first", "none", "late name"]
# What of a delta says nothing.
EMPTY: dict[str, list[Any]] = {
    "content": [None, ""],
    "refusal": [None],
    "reasoning": [None],
    "reasoning_content": [None, ""],
    "tool_calls": [None, []],
    "function_call": [None],
}
# What stands in one delta is read as thinking, then text, then calls.
ORDER = ["role", "reasoning", "reasoning_content", "content", "refusal", "tool_calls"]


def take(rng: random.Random, most: int) -> list[str]:
    return [rng.choice(TEXTS) for _ in range(rng.randrange(most))]


def make_call(
    rng: random.Random, number: int, truncated: bool, numbering: str, has_id: bool
) -> tuple[Any, list[Any]]:
    """A call, and the pieces that it comes in."""
    arguments: Any = rng.choice(ARGUMENTS)
    if truncated:
        arguments = arguments[: rng.randrange(len(arguments) + 1)]
    cuts = sorted(rng.randrange(len(arguments) + 1) for _ in range(rng.randrange(4)))
    parts = [arguments[a:b] for a, b in zip([0, *cuts], [*cuts, len(arguments)], strict=True)]
    if arguments.strip().startswith("{") and not truncated and rng.random() < 0.1:
        arguments = json.loads(arguments)
        parts = [arguments]
    name = f"f{number}"
    call_id = f"call_{number}" if has_id else rng.choice([None, ""])
    call = {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    shown = {} if call_id is None and rng.random() < 0.5 else {"id": call_id}
    heads = [{**shown, "type": "function", "function": {"name": name, "arguments": parts[0]}}]
    if numbering == "late name":
        nameless = rng.choice([{}, {"function": {"name": rng.choice([None, ""]), "arguments": ""}}])
        heads.insert(0, {**shown, "type": "function", **nameless})
        if rng.random() < 0.5:
            heads[1].pop("id", None)
    heads += [go_on(rng, call, part) for part in parts[1:]]
    index = {"first": {"index": 0}, "none": {}}.get(numbering, {"index": number})
    return call, [{"tool_calls": [{**index, **head}]} for head in heads]


def go_on(rng: random.Random, call: Any, part: str) -> dict[str, Any]:
    """A later piece of a call: an id alone or a name alone may be anything, but both are another call's."""
    function: dict[str, Any] = {"arguments": part}
    if not part and rng.random() < 0.5:
        function = rng.choice([{}, {"arguments": None}])
    match rng.choice(["", "", "empty", "id", "other id", "name"]):
        case "empty":
            return {
                "id": rng.choice([None, ""]),
                "function": {"name": rng.choice([None, ""]), **function},
            }
        case "id":
            return {"id": call["id"], "type": "function", "function": function}
        case "other id":
            return {"id": f"made_up_{rng.random()}", "function": function}
        case "name" if call["id"]:
            named = {"name": call["function"]["name"], **function}
            return {"id": call["id"], "type": "function", "function": named}
        case _:
            return {"function": function}


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


def make_calls(rng: random.Random, truncated: bool) -> tuple[list[Any], list[Any]]:
    """The calls, and the pieces of all of them."""
    numbering = rng.choice(NUMBERINGS)
    has_id = numbering == "first" or rng.random() < 0.8
    count = rng.choice([0, 0, 1, 2, 3])
    made = [make_call(rng, number, truncated, numbering, has_id) for number in range(count)]
    turns = rng.choice([0, 0, 0.5]) if numbering == "each" else 0
    return [call for call, _ in made], weave(rng, [pieces for _, pieces in made], turns)


def make_usage(rng: random.Random) -> dict[str, Any]:
    usage: dict[str, Any] = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    if rng.random() < 0.5:
        usage |= {
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
    return usage


def make_stream(rng: random.Random) -> Stream:
    """Any answer that OpenAI's protocol allows, or that of a lenient server."""
    finish = rng.choice(["stop", "length", "tool_calls", "content_filter"])
    texts, thoughts = take(rng, 4), take(rng, 4)
    refusals = take(rng, 3) if rng.random() < 0.2 else []
    calls, calling = make_calls(rng, finish == "length")
    names = rng.choice(THINKING)
    thinking = [dict.fromkeys(names, thought) for thought in thoughts]
    saying = [{"content": text} for text in texts] + [{"refusal": text} for text in refusals]
    strands = [thinking, saying, calling]
    pieces = sum(len(strand) for strand in strands)
    if rng.random() < 0.3:
        rng.shuffle(strands)
    deltas = weave(rng, strands, rng.choice([0, 0, 0.3]))
    stop_reason = rng.choice([None, None, 7, "END"]) if finish == "stop" else None
    message = {
        "content": "".join(texts) or None,
        "refusal": "".join(refusals) or None,
        **dict.fromkeys(names, "".join(thoughts) or None),
        "tool_calls": calls,
    }
    choice = {"message": message, "finish_reason": finish, "stop_reason": stop_reason}
    whole: dict[str, Any] = {"id": "chatcmpl-9", "model": "org/m", "choices": [choice]}
    told = rng.choice(["at the end", "at the end", "with the finish", "always", "never"])
    if told != "never":
        whole["usage"] = make_usage(rng)
    end = rng.choice(ENDS)
    chunks = make_chunks(rng, make_groups(rng, deltas), choice, end)
    tell_usage(chunks, whole.get("usage"), told)
    events = make_events(rng, chunks, end)
    raw = b"".join(events)
    if end == "cut":
        raw = raw[: rng.randrange(len(raw) - len(events[-1]) + 1)]
    return Stream(raw, whole, end != "regular", pieces)


def make_groups(rng: random.Random, deltas: list[Any]) -> list[dict[str, Any]]:
    """The deltas as they are sent: some together, some beside what says nothing."""
    merges = rng.choice([0, 0, 0.5])
    groups: list[dict[str, Any]] = []
    if rng.random() < 0.7:
        groups.append({"role": "assistant", "content": rng.choice(["", None])})
    for delta in deltas:
        last = max((ORDER.index(key) for key in groups[-1]), default=0) if groups else 99
        here = ORDER.index(next(iter(delta)))
        if rng.random() >= merges or here < last or (here == last and "tool_calls" not in delta):
            groups.append(dict(delta))
        elif here == last:
            groups[-1]["tool_calls"] = groups[-1]["tool_calls"] + delta["tool_calls"]
        else:
            groups[-1] |= delta
    if rng.random() < 0.2:
        groups.insert(rng.randrange(len(groups) + 1), rng.choice([{}, {"content": ""}]))
    role = {"role": "assistant"} if rng.random() < 0.2 else {}
    pads = rng.choice([0, 0, 0.3])
    return [{**role, **pad(rng, group, pads)} for group in groups]


def pad(rng: random.Random, group: dict[str, Any], pads: float) -> dict[str, Any]:
    """The delta with some of the fields that it has not, before or after its own."""
    if not pads:
        return group
    # An empty name before a full one would be read as the full one: no server sends two that differ.
    empty = {name: rng.choice(given) for name, given in EMPTY.items() if rng.random() < pads}
    rest = {name: value for name, value in empty.items() if name not in group}
    return {**rest, **group} if rng.random() < 0.5 else {**group, **rest}


def make_chunks(
    rng: random.Random, groups: list[dict[str, Any]], choice: dict[str, Any], end: str
) -> list[dict[str, Any]]:
    """The chunks but for the usage. The finish reason has one of its own, or comes with what was said last."""
    shell = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": 1, "model": "org/m"}
    unfinished = rng.choice(
        [{"finish_reason": None}, {}, {"finish_reason": None, "logprobs": None}]
    )
    choices: list[dict[str, Any]] = [{"index": 0, "delta": group, **unfinished} for group in groups]
    if end not in ("no finish", "neither"):
        if not choices or rng.random() < 0.6:
            choices.append({"index": 0, "delta": rng.choice([{}, {"content": ""}])})
        choices[-1] |= {name: choice[name] for name in ("finish_reason", "stop_reason")}
    chunks = [{**shell, "choices": [told]} for told in choices]
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks) + 1), {**shell, "choices": []})
    return chunks


def tell_usage(chunks: list[dict[str, Any]], usage: Any, told: str) -> None:
    """Adds the usage: in a chunk of its own, in each, with the last, or nowhere."""
    if told == "always":
        for at, chunk in enumerate(chunks):
            chunk["usage"] = {"prompt_tokens": 9, "completion_tokens": at, "total_tokens": 9 + at}
    if told == "with the finish" and chunks:
        chunks[-1]["usage"] = usage
    elif told != "never":
        shell = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": 1}
        for chunk in chunks:
            chunk.setdefault("usage", None)
        chunks.append({**shell, "model": "org/m", "choices": [], "usage": usage})


def make_events(rng: random.Random, chunks: list[dict[str, Any]], end: str) -> list[bytes]:
    broken_at = rng.randrange(len(chunks)) if chunks else 0
    line_end = rng.choice(["\n", "\n", "\r\n", "\r"])
    ascii_only = rng.random() < 0.5
    parts = rng.choice([(", ", ": "), (",", ":")])
    field = rng.choice(["data: ", "data: ", "data:"])
    comment = rng.choice([": waiting", ":"])
    events = []
    for at, chunk in enumerate(chunks):
        if end == "error" and at == broken_at:
            events.append('data: {"error": {"message": "no memory", "code": 500}}\n\n')
        if end == "garbage" and at == broken_at:
            events.append("data: {]\n\n")
        if rng.random() < 0.1:
            events.append(f"{comment}\n\n")
        data = json.dumps(chunk, ensure_ascii=ascii_only, separators=parts)
        events.append(f"{field}{data}\n\n")
    if end not in ("no done", "neither"):
        events.append(f"{field}[DONE]\n\n")
    return [event.replace("\n", line_end).encode() for event in events]


@pytest.fixture(scope="session", name="make_stream")
def _make_stream() -> Any:
    return make_stream


@pytest.fixture(scope="session")
def check_streams() -> Any:
    """`check_streams(check)`: `check(stream, rng)` of every seed's stream; a failure tells the seed."""

    def check_all(check: Callable[[Stream, random.Random], object]) -> None:
        for seed in range(STREAMS):
            rng = random.Random(seed)  # noqa: S311 - draws tests
            try:
                check(make_stream(rng), rng)
            except Exception as error:
                error.add_note(f"in the stream of seed {seed}")
                raise

    return check_all
