# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes between vLLM's answers and ours, whole and chunk by chunk."""

from typing import Any

import msgspec
import pytest

from neuron.host.engines.vllm_asked import Wish
from neuron.host.engines.vllm_wire import (
    ChatDeltas,
    Stream,
    read_stream_error,
    shape_chat,
    shape_plain,
)

MARKERS = ("<think>", "</think>")
CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}
REST = {"index": 0, "id": None, "function": {"name": None, "arguments": '{"a":1}'}}
Delta = dict[str, Any]


def run(deltas: list[Delta], wish: Wish, finish: str = "stop") -> list[Delta]:
    """The deltas that come out; the last one in comes with the finish reason."""
    shape = ChatDeltas(wish, MARKERS)
    out = []
    for number, delta in enumerate(deltas):
        last = number == len(deltas) - 1
        choice = {"index": 0, "delta": dict(delta), "finish_reason": finish if last else None}
        chunk = shape({"choices": [choice]})
        if chunk is not None:
            out.append(chunk["choices"][0]["delta"])
    return out


def joined(deltas: list[Delta], name: str) -> str:
    return "".join(delta.get(name) or "" for delta in deltas)


def r(text: str) -> Delta:
    return {"reasoning": text}


def c(text: str) -> Delta:
    return {"content": text}


ROLE: Delta = {"role": "assistant", "content": ""}
END: Delta = {}

CASES = [
    ("plain", [ROLE, c("Hi"), c(" you"), END], [ROLE, c("Hi"), c(" you"), END]),
    (
        "white space inside is kept",
        [ROLE, c("a"), c("\n"), c("\n"), c("b"), END],
        [ROLE, c("a"), c("\n\nb"), END],
    ),
    ("white space at the end is kept", [ROLE, c("a\n"), END], [ROLE, c("a"), c("\n")]),
    ("white space at the start is kept", [ROLE, c("\n a"), END], [ROLE, c("\n a"), END]),
    ("only white space is an answer too", [ROLE, c("\n\n"), END], [ROLE, c("\n\n")]),
    ("nothing at all", [ROLE, END], [ROLE, END]),
    (
        "reasoning is renamed and trimmed",
        [ROLE, r("\n"), r("Hm"), r(".\n"), c("\n\n"), c("Hi"), END],
        [ROLE, {"reasoning_content": "Hm"}, {"reasoning_content": "."}, c("Hi"), END],
    ),
    (
        "line ends between reasoning and content go with the content's first words",
        [ROLE, r("Hm"), c("\n\n  Hi"), END],
        [ROLE, {"reasoning_content": "Hm"}, c("  Hi"), END],
    ),
    (
        "reasoning and content in one delta",
        [ROLE, {"reasoning": "Hm\n", "content": "\n\nHi"}, END],
        [ROLE, {"reasoning_content": "Hm", "content": "Hi"}, END],
    ),
    (
        "cut off in the middle of reasoning",
        [ROLE, r("Hm"), r(" so"), END],
        [ROLE, {"reasoning_content": "Hm"}, {"reasoning_content": " so"}, END],
    ),
    (
        "nothing after reasoning",
        [ROLE, r("Hm"), c("\n\n"), END],
        [ROLE, {"reasoning_content": "Hm"}, END],
    ),
    (
        "no stray white space before, between and after calls",
        [ROLE, r("Hm"), c("\n\n"), {"tool_calls": [CALL]}, {"tool_calls": [REST]}, c("\n"), END],
        [
            ROLE,
            {"reasoning_content": "Hm"},
            {"tool_calls": [{**CALL, "function": {"name": "f", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]},
            END,
        ],
    ),
    (
        "words before a call are kept, the white space after them is not",
        [ROLE, c("Wait"), c(".\n\n"), {"tool_calls": [CALL]}, END],
        [
            ROLE,
            c("Wait"),
            c("."),
            {"tool_calls": [{**CALL, "function": {"name": "f", "arguments": ""}}]},
            END,
        ],
    ),
    (
        "words after a call come without the white space around it",
        [ROLE, c("a\n\n"), {"tool_calls": [CALL]}, c("\n"), c("b"), END],
        [
            ROLE,
            c("a"),
            {"tool_calls": [{**CALL, "function": {"name": "f", "arguments": ""}}]},
            c("b"),
            END,
        ],
    ),
    (
        "white space of any kind after reasoning is nothing",
        [ROLE, r("Hm"), c("\n \n"), END],
        [ROLE, {"reasoning_content": "Hm"}, END],
    ),
    (
        "fields that are null are not sent",
        [ROLE, {"content": "a", "refusal": None, "tool_calls": [], "reasoning": None}, END],
        [ROLE, c("a"), END],
    ),
]


@pytest.mark.parametrize(("deltas", "expected"), [x[1:] for x in CASES], ids=[x[0] for x in CASES])
def test_deltas(deltas: list[Delta], expected: list[Delta]) -> None:
    assert run(deltas, Wish()) == expected


THINKING = [
    (
        "reasoning is content between its markers",
        [ROLE, r("\n"), r("Hm"), r(".\n"), c("\n\n"), c("Hi"), END],
        "<think>\nHm.\n</think>\n\nHi",
    ),
    ("closed where the answer ends in it", [ROLE, r("Hm"), END], "<think>\nHm\n</think>\n\n"),
    ("closed with the last words", [ROLE, {**r("Hm"), **c("Hi")}], "<think>\nHm\n</think>\n\nHi"),
    (
        "closed before calls",
        [ROLE, r("Hm"), {"tool_calls": [CALL]}, END],
        "<think>\nHm\n</think>\n\n",
    ),
    ("no reasoning, no markers", [ROLE, r("\n"), c("Hi"), END], "Hi"),
    ("white space alone is no reasoning", [ROLE, r("\n\n"), c("\n\nHi"), END], "\n\nHi"),
]


@pytest.mark.parametrize(
    ("deltas", "expected"), [x[1:] for x in THINKING], ids=[x[0] for x in THINKING]
)
def test_deltas_with_thinking_included(deltas: list[Delta], expected: str) -> None:
    out = run(deltas, Wish(thinking=True))
    assert joined(out, "content") == expected
    assert joined(out, "reasoning_content") == ""
    assert all(delta for delta in out[:-1])


def cuts(text: str) -> list[list[str]]:
    """The text whole, cut at every place, and letter by letter."""
    at_each = [[text[:cut], text[cut:]] for cut in range(1, len(text))]
    return [[text], *at_each, list(text)]


@pytest.mark.parametrize("wish", [Wish(), Wish(thinking=True)])
def test_the_texts_do_not_depend_on_how_they_are_cut(wish: Wish) -> None:
    reasoning, content = "\nI think.\n So\n", "\n\nIt is  so.\n\nYes. "
    seen = set()
    for pieces in cuts(reasoning):
        for words in cuts(content):
            out = run([ROLE, *map(r, pieces), *map(c, words), END], wish)
            seen.add((joined(out, "reasoning_content"), joined(out, "content")))
    if wish.thinking:
        assert seen == {("", "<think>\nI think.\n So\n</think>\n\nIt is  so.\n\nYes. ")}
    else:
        assert seen == {("I think.\n So", "It is  so.\n\nYes. ")}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("calls", "said", "told"),
    [
        ([CALL], "stop", "tool_calls"),  # vLLM says so of a call that was asked for by name
        ([CALL], "tool_calls", "tool_calls"),
        ([CALL], "length", "length"),
        ([], "tool_calls", "stop"),  # and so where a call had to be, and was none
        ([], "stop", "stop"),
        ([], "length", "length"),
    ],
)
def test_the_finish_reason_tells_of_calls(
    calls: list[Delta], said: str, told: str, stream: bool
) -> None:
    message: Delta = {"tool_calls": calls, "content": None if calls else "x"}
    choice = {"index": 0, "finish_reason": said}
    if stream:
        chunk = ChatDeltas(Wish(), MARKERS)({"choices": [{**choice, "delta": message}]})
        assert chunk is not None
    else:
        answer = {"choices": [{**choice, "message": {"role": "assistant", **message}}]}
        chunk = shape_chat(answer, Wish(), MARKERS)
    assert chunk["choices"][0]["finish_reason"] == told


def test_choices_do_not_mix() -> None:
    shape = ChatDeltas(Wish(), MARKERS)
    one = {"index": 0, "delta": r("Hm"), "finish_reason": None}
    other = {"index": 1, "delta": c("\nHi"), "finish_reason": None}
    chunk = shape({"choices": [one, other]})
    assert chunk is not None
    assert [choice["delta"] for choice in chunk["choices"]] == [
        {"reasoning_content": "Hm"},
        {"content": "\nHi"},
    ]


def test_a_delta_without_text_goes_out_when_it_has_logprobs() -> None:
    choice = {"index": 0, "delta": c("\n"), "finish_reason": None, "logprobs": {"content": []}}
    assert ChatDeltas(Wish(), MARKERS)({"choices": [choice]}) is not None


def whole(message: Delta, wish: Wish | None = None, **fields: Any) -> Any:
    answer = {
        "id": "x",
        "service_tier": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", **message},
                "logprobs": None,
                "finish_reason": "stop",
                "token_ids": None,
                **fields,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 2, "multimodal_tokens": None},
            "completion_tokens_details": None,
        },
    }
    return shape_chat(answer, wish or Wish(), MARKERS)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "Hi\n", "reasoning": None}, {"content": "Hi\n"}),
        (
            {"content": "\n\nHi", "reasoning": "\nHm.\n"},
            {"content": "Hi", "reasoning_content": "Hm."},
        ),
        ({"content": None, "reasoning": "Hm"}, {"content": None, "reasoning_content": "Hm"}),
        (
            {"content": "\n\n", "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
            {
                "content": None,
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": ""}}],
            },
        ),
        ({"content": None, "refusal": None, "tool_calls": []}, {"content": None}),
    ],
)
def test_a_whole_message_is_shaped_like_a_stream(message: Delta, expected: Delta) -> None:
    assert whole(message)["choices"][0]["message"] == {"role": "assistant", **expected}


def test_a_whole_message_with_thinking_included() -> None:
    message = whole({"content": "\n\nHi", "reasoning": "\nHm\n"}, Wish(thinking=True))
    assert message["choices"][0]["message"]["content"] == "<think>\nHm\n</think>\n\nHi"


def test_null_stays_where_openai_writes_it_and_nowhere_else() -> None:
    answer = whole({"content": None})
    choice = answer["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["logprobs"] is None
    assert "token_ids" not in choice
    assert "service_tier" not in answer
    assert answer["usage"] == {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


def test_an_answer_without_choices_loses_its_nulls() -> None:
    assert shape_plain({"a": None, "b": 1}) == {"b": 1}


USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
COUNTED = (
    b': usage {"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":1}}\n\n'
)


def event(chunk: Any) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def stream(wish: Wish) -> bytes:
    chunks = [
        {"id": "x", "choices": [{"index": 0, "delta": c("Hi"), "finish_reason": None}]},
        {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"id": "x", "choices": [], "usage": USAGE},
    ]
    fed = Stream(wish, ChatDeltas(wish, MARKERS))
    return b"".join(fed.feed(e) for e in [*map(event, chunks), b"data: [DONE]\n\n"])


TEXTS = (
    b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
    b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
)
DONE = b"data: [DONE]\n\n"


def test_the_usage_is_not_sent_to_who_did_not_ask() -> None:
    assert stream(Wish()) == TEXTS + DONE


def test_the_usage_chunk_is_sent_to_who_asked() -> None:
    chunk = event({"id": "x", "choices": [], "usage": USAGE})
    assert stream(Wish(usage_chunk=True)) == TEXTS + chunk + DONE


def test_the_gateway_gets_the_usage_as_a_comment_right_before_the_end() -> None:
    assert stream(Wish(usage_comment=True)) == TEXTS + COUNTED + DONE


def test_there_is_no_comment_where_nothing_was_counted() -> None:
    wish = Wish(usage_comment=True)
    assert Stream(wish, ChatDeltas(wish, MARKERS)).feed(DONE) == DONE


def test_a_completion_goes_through_without_its_nulls() -> None:
    chunk = {
        "id": "x",
        "choices": [{"index": 0, "text": "\n a", "finish_reason": None, "token_ids": None}],
    }
    assert Stream(Wish(), lambda found: found).feed(event(chunk)) == (
        b'data: {"id":"x","choices":[{"index":0,"text":"\\n a","finish_reason":null}]}\n\n'
    )


def test_an_error_event_is_told_from_a_chunk_that_talks_of_errors() -> None:
    assert read_stream_error(event({"error": {"message": "no", "code": 400}})) == {
        "message": "no",
        "code": 400,
    }
    assert read_stream_error(event({"id": '"error"', "choices": []})) is None
    assert read_stream_error(DONE) is None
