# SPDX-License-Identifier: GPL-3.0-or-later
"""The meter of Responses: what the client gets is what the neuron sent, read alike at any cut."""

import json
from itertools import count
from typing import Any

import msgspec
import pytest

from cortex_core import sse
from cortex_core.errors import UpstreamConnectionError, UpstreamProtocolError
from cortex_core.openai import CompletionDetails, PromptDetails, Usage
from cortex_gateway.dialects.openai_responses import OPENAI_RESPONSES
from cortex_gateway.usage import Meter

COUNTS = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 10,
}
USAGE = Usage(
    prompt_tokens=7,
    completion_tokens=3,
    total_tokens=10,
    prompt_tokens_details=PromptDetails(4),
    completion_tokens_details=CompletionDetails(1),
)


def event(kind: str, number: int, name: bool = True, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, "sequence_number": number, **fields}).encode()
    return (f"event: {kind}\n".encode() if name else b"") + sse.write_data(data)


CREATED = event("response.created", 0, response={"usage": None, "error": None})
THOUGHT = event("response.reasoning_text.delta", 1, delta="hm")
TEXT = event("response.output_text.delta", 2, delta='a [DONE] "error": b')
DONE = event("response.output_text.done", 3, text="a")
COMPLETED = event("response.completed", 4, response={"usage": COUNTS, "error": None})
FAILED = event("response.failed", 4, response={"usage": None, "error": {"code": "server_error"}})
INCOMPLETE = event("response.incomplete", 4, response={"usage": COUNTS})
ERROR = event("error", 3, code="engine_died", message="m")
ALIVE = b": keep-alive\n\n"


class Read(msgspec.Struct, frozen=True):
    """What is known after a stream."""

    usage: Usage | None = None
    deltas: int = 0
    error_code: str | None = None


def make_meter() -> Meter:
    ticks = count(1)
    return OPENAI_RESPONSES.meter("the node", lambda: float(next(ticks)))


def check(stream: bytes, expected: Read) -> None:
    """Whole, cut at every position, and byte by byte."""
    halves = [[stream[:cut], stream[cut:]] for cut in range(len(stream) + 1)]
    for pieces in [*halves, [stream[i : i + 1] for i in range(len(stream))]]:
        meter = make_meter()
        assert b"".join([meter.feed(piece) for piece in pieces]) + meter.close() == stream
        assert Read(meter.usage, meter.deltas, meter.error_code) == expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (CREATED + THOUGHT + TEXT + DONE + COMPLETED, Read(USAGE, 2)),
        (CREATED + ALIVE + TEXT + INCOMPLETE, Read(USAGE, 1)),
        (CREATED + FAILED, Read(None, 0, "server_error")),
        (CREATED + TEXT + ERROR, Read(None, 1, "engine_died")),
        (CREATED + b'data: {"error":{"code":"engine_died"}}\n\ndata: [DONE]\n\n', Read(None, 0, "engine_died")),
        (CREATED + TEXT + COMPLETED + b"data: [DONE]\n\n", Read(USAGE, 1)),
        (CREATED + TEXT + b"data: no json\n\n" + COMPLETED, Read(USAGE, 1)),
    ],
)  # fmt: skip
def test_a_stream_passes_as_it_is_and_is_read_at_any_cut(stream: bytes, expected: Read) -> None:
    check(stream, expected)


def test_events_without_names_are_read_too() -> None:
    stream = [
        event("response.created", 0, name=False),
        event("response.output_text.delta", 1, name=False),
        event("response.output_text.delta", 2, name=False),
        event("response.completed", 3, name=False),
    ]
    meter = make_meter()
    assert b"".join([meter.feed(part) for part in stream]) == b"".join(stream)
    assert meter.close() == b""
    assert meter.deltas == 2


@pytest.mark.parametrize("rest", [b"", TEXT, TEXT[:20], COMPLETED[:-30], b"data: [DONE]\n\n"])
def test_a_stream_without_its_last_event_is_broken(rest: bytes) -> None:
    meter = make_meter()
    meter.feed(CREATED + THOUGHT + rest)
    with pytest.raises(UpstreamProtocolError, match="ended without its last event") as caught:
        meter.close()
    told = sse.read_event(meter.fail(caught.value))
    data = json.loads(told.data or b"")
    assert (told.event, data["type"], data["code"]) == (
        b"error",
        "error",
        "upstream_protocol_error",
    )
    assert data["sequence_number"] == (3 if rest == TEXT else 2)
    assert meter.error_code == "upstream_protocol_error"


def test_a_break_after_the_end_is_none() -> None:
    meter = make_meter()
    meter.feed(CREATED + COMPLETED)
    assert meter.fail(UpstreamConnectionError(upstream="the node", reason="cut")) == b""
    assert meter.error_code is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"usage": COUNTS, "error": None}, Read(USAGE)),
        ({"usage": None, "error": {"code": "server_error"}}, Read(None, 0, "server_error")),
        ({"error": {"code": "queue_full"}}, Read(None, 0, "queue_full")),
        ({"error": {}}, Read(None, 0, "unknown")),
        ([], Read()),
    ],
)
def test_a_whole_answer_passes_as_it_is_and_is_read(body: Any, expected: Read) -> None:
    meter, raw = make_meter(), json.dumps(body).encode()
    assert meter.whole(200, raw) == (200, raw)
    assert Read(meter.usage, meter.deltas, meter.error_code) == expected


def test_a_last_event_without_its_empty_line_is_an_end() -> None:
    meter = make_meter()
    assert meter.feed(CREATED + COMPLETED[:-1]) == CREATED
    assert meter.close() == COMPLETED[:-1]
