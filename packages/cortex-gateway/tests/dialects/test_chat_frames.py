# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read by a chunk's frame is what reading the chunk says, and what has none is read."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core import sse
from cortex_gateway.dialects.chat_frames import Frame, find_frame
from cortex_gateway.dialects.chat_parts import Chunk

SHELL = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def write(*, spaced: bool = False, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    parts = (", ", ": ") if spaced else (",", ":")
    return json.dumps({**SHELL, "choices": [choice]}, separators=parts).encode()


def find(data: bytes) -> Frame | None:
    return find_frame(data, msgspec.json.decode(data, type=Chunk))


def read(frame: Frame | None, data: bytes) -> str | None:
    assert frame is not None
    return frame.read(sse.write_data(data))


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("first", ["a", "m", "content", "\n", '"', "ü", "0"])
def test_a_chunk_with_another_text_is_known(field: str, spaced: bool, first: str) -> None:
    data = write(spaced=spaced, **{field: first})
    frame = find(data.replace(b"\\u00fc", "ü".encode()))
    assert read(frame, write(spaced=spaced, **{field: " two"})) == " two"
    assert frame is not None
    assert frame.field == field


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}',
        b'{"choices":[{"delta":{"content":"a"},"stop_reason":7}]}',
        b'{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1}}',
        b'{"choices":[{"delta":{"content":"a"}}],"error":"no"}',
        b'{"choices":[{"delta":{"content":"a"}},{"delta":{"content":"a"}}]}',
        b'{"choices":[{"index":1,"delta":{"content":"a"}}]}',
        b'{"choices":[{"delta":{"content":"a","reasoning":"a"}}]}',
        b'{"choices":[{"delta":{"content":"a","refusal":"a"}}]}',
        b'{"choices":[{"delta":{"content":"a","tool_calls":[{"index":0}]}}]}',
        b'{"choices":[{"delta":{"content":""}}]}',
        b'{"choices":[{"delta":null}]}',
        b'{"choices":[]}',
        b'{"choices":null}',
        # Where it seems to stand is another field; or it is written otherwise.
        b'{"content":"a","choices":[{"delta":{"content":"a"}}]}',
        b'{"choices":[{"delta":{"content":"a","content":"a"}}]}',
        b'{"choices":[{"delta":{"content":"\\u0061"}}]}',
        b'{"choices":[{"delta":{"con\\u0074ent":"a"}}]}',
    ],
)
def test_who_says_more_or_hides_it_has_no_frame(data: bytes) -> None:
    assert find(data) is None


@pytest.mark.parametrize(
    "event",
    [
        sse.write_data(write(content="")),
        sse.write_data(write(content="\n")),
        sse.write_data(write(content="b", role="assistant")),
        sse.write_data(write(reasoning="b")),
        sse.write_data(write(content="b").replace(b"chatcmpl-1", b"chatcmpl-2")),
        sse.write_data(write(content="b").replace(b"null}]}", b'"stop"}]}')),
        sse.write_data(write(content="b").replace(b'"b"', b'"b\x01"')),
        sse.write_data(write(content="b").replace(b'"b"', b'"b\xff"')),
        sse.write_data(write(content="b").replace(b'"b"', b'"b","content":"c"')),
        # Head and tail, but of one text's quote.
        sse.write_data(write(content="b").replace(b'"b"', b'"')),
        sse.write_data(write(content="b")) * 2,
        sse.write_data(write(content="b"))[:-1],
        b": a comment\n" + sse.write_data(write(content="b")),
        b"",
    ],
)
def test_any_other_event_is_to_be_read(event: bytes) -> None:
    frame = find(write(content="a"))
    assert frame is not None
    assert frame.read(event) is None


@given(first=st.text(min_size=1), text=st.text(), ascii_only=st.booleans())
def test_a_frame_says_what_reading_says(first: str, text: str, ascii_only: bool) -> None:
    choices = [[{"delta": {"content": said}}] for said in (first, text)]
    known, other = (
        json.dumps({"choices": choice}, ensure_ascii=ascii_only).encode("utf-8", "ignore")
        for choice in choices
    )
    frame = find(known)
    said = frame.read(sse.write_data(other)) if frame else None
    delta = (msgspec.json.decode(other, type=Chunk).choices or [])[0].delta
    assert said is None or (delta is not None and said == delta.content)
