# SPDX-License-Identifier: GPL-3.0-or-later
"""A translated stream, and what it is counted as, are the same whether its chunks are read or only known again."""

import json
from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_core import sse
from cortex_core.errors import UpstreamProtocolError
from cortex_gateway.dialects import build_dialects
from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.responses_chat import ResponsesByChat

SHELL: dict[str, Any] = {"id": "chatcmpl-1", "created": 1, "model": "m"}
CALL = {"index": 0, "id": "call_1", "function": {"name": "f", "arguments": "{}"}}


def chunk(delta: Any, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    data = json.dumps({**SHELL, "choices": [choice], **more}, ensure_ascii=False)
    return sse.write_data(data.encode())


SAID = [chunk({"content": text}) for text in (" a", "b c", "ü€😀", "m", "content", " a.")]
THOUGHT = [chunk({"reasoning_content": text}) for text in ("Hm", " so", "m")]
# What is not alike, or not to be told from a text's end at a look.
OTHERS = [
    *(chunk({"content": text}) for text in ("", "\n", '"', "\\", "\u2028", '","x":"')),
    chunk({"content": "a", "role": "assistant"}),
    chunk({"content": "a", "reasoning": "b"}),
    chunk({"content": "a", "refusal": "no"}),
    chunk({"reasoning": "Hm"}),
    chunk({"tool_calls": [CALL]}),
    chunk({"content": "a"}, "stop"),
    chunk({"content": "a"}, usage={"prompt_tokens": 9, "completion_tokens": 5}),
    chunk({"content": "a"}, id="chatcmpl-2"),
    chunk({"content": "a"}, error={"message": "no memory", "code": 500}),
    sse.write_data(json.dumps({**SHELL, "choices": [{"delta": {"content": " a"}}]}).encode()),
    b": waiting\n\n",
    b": usage {}\n\n",
    sse.DONE,
]
END = [chunk({}, "stop"), sse.DONE]
EVENTS = st.lists(st.sampled_from(SAID * 4 + THOUGHT * 4 + OTHERS), max_size=30)
ASKED = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "f"}]}
APIS: dict[str, tuple[Dialect, dict[str, Any]]] = {
    "messages": (build_dialects()["/v1/messages"], {**ASKED, "max_tokens": 9}),
    "responses": (ResponsesByChat(), {"model": "m", "stream": True, "input": "f"}),
}


def run(api: str, parts: list[bytes]) -> tuple[bytes, Any]:
    """What the client gets, and what was counted; None: it broke off, and what came after that may have been counted."""
    dialect, fields = APIS[api]
    ticks = count(1)
    meter = dialect.meter("n", lambda: float(next(ticks)))
    asked = dialect.read(msgspec.json.encode(fields))
    passing = dialect.translate(meter, "req_1", asked)
    out = b""
    try:
        for part in parts:
            out += passing.feed(part)
        out += passing.close()
    except UpstreamProtocolError as error:
        return out + passing.fail(error), None
    return out, (meter.deltas, meter.usage, meter.error_code, meter.is_done, meter.first_s)


@pytest.mark.slow
@pytest.mark.parametrize("api", APIS)
@given(events=EVENTS, end=st.sampled_from([END, []]))
@settings(max_examples=200, deadline=None)
def test_known_chunks_say_and_count_what_read_ones_do(
    api: str, events: list[bytes], end: list[bytes]
) -> None:
    assert run(api, events + end) == run(api, [b"".join(events + end)])


@pytest.mark.parametrize("api", APIS)
def test_a_chunk_over_again_is_translated_and_counted(api: str) -> None:
    texts = ("one", " two", " three", "\n", " four")
    chunks = [chunk({"content": text}) for text in texts]
    events = [*chunks, *END]
    out, counted = run(api, events)
    assert counted == (5, None, None, True, 1.0)
    assert [out.count(json.dumps(text).encode()) for text in texts] == [1] * 5
    # After its end a stream says nothing.
    assert run(api, [*events, chunks[0]]) == (out, (6, *counted[1:]))
