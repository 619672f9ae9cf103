# SPDX-License-Identifier: GPL-3.0-or-later
import json
from typing import Any

from cortex_core import sse
from cortex_core.openai import Usage
from neuron.host.engines.echo_answer import Answer
from neuron.host.engines.echo_wire import (
    ChatWriter,
    CompletionWriter,
    Head,
    Writer,
    write_usage_comment,
)

HEAD = Head(id="chatcmpl-0123456789abcdef", created=7, model="m")
USAGE = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
PLAIN = Answer(tokens=["a", " b"], finish_reason="stop", usage=USAGE)
CALL = Answer(thinking=["so"], call=("f", '{"x":1}'), finish_reason="tool_calls", usage=USAGE)


def stream(writer: Writer, answer: Answer) -> list[Any]:
    parts = [writer.open(HEAD), *writer.parts(HEAD, answer), writer.close(HEAD, answer)]
    events = [sse.read_event(event) for event in sse.Splitter().feed(b"".join(parts))]
    return [json.loads(event.data or b"") for event in events]


def deltas(chunks: list[Any]) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in chunks]


def test_a_chat_stream_is_role_pieces_and_finish() -> None:
    chunks = stream(ChatWriter(), PLAIN)
    assert deltas(chunks) == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": " b"},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, None, "stop"]
    for chunk in chunks:
        assert (chunk["id"], chunk["object"]) == (HEAD.id, "chat.completion.chunk")
        assert (chunk["created"], chunk["model"]) == (7, "m")
        assert "usage" not in chunk


def test_a_tool_call_streams_its_name_and_then_its_arguments() -> None:
    call = {"id": "call_456789abcdef", "type": "function"}
    assert deltas(stream(ChatWriter(), CALL))[1:] == [
        {"reasoning_content": "so"},
        {"tool_calls": [{"index": 0, **call, "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":1}'}}]},
        {},
    ]
    whole = json.loads(ChatWriter().whole(HEAD, CALL))
    assert whole["choices"][0] == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "reasoning_content": "so",
            "tool_calls": [{**call, "function": {"name": "f", "arguments": '{"x":1}'}}],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }


def test_a_whole_answer_says_what_the_stream_says() -> None:
    whole = json.loads(ChatWriter().whole(HEAD, PLAIN))
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "a b"}
    assert whole["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def test_completions_have_text() -> None:
    chunks = stream(CompletionWriter(), PLAIN)
    assert [c["choices"][0]["text"] for c in chunks] == ["a", " b", ""]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, "stop"]
    whole = json.loads(CompletionWriter().whole(HEAD, PLAIN))
    assert (whole["object"], whole["choices"][0]["text"]) == ("text_completion", "a b")


def test_usage_has_a_chunk_without_choices_and_a_comment() -> None:
    for writer in (ChatWriter(), CompletionWriter()):
        (event,) = sse.Splitter().feed(writer.usage(HEAD, USAGE))
        chunk = json.loads(sse.read_event(event).data or b"")
        assert (chunk["choices"], chunk["usage"]["total_tokens"]) == ([], 3)
    comment = sse.read_event(write_usage_comment(USAGE))
    assert comment.data is None
    assert comment.comment == b'usage {"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}'
