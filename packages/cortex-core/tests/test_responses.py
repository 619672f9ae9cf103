# SPDX-License-Identifier: GPL-3.0-or-later
"""What a stream of the Responses API tells of itself."""

import json

import pytest

from cortex_core import sse
from cortex_core.errors import UpstreamConnectionError
from cortex_core.openai import CompletionDetails, PromptDetails, Usage
from cortex_core.responses import Progress, read_event, read_response, write_error_event


@pytest.mark.parametrize(
    ("data", "is_last"),
    [
        (b'{"type":"response.created","response":{"error":null,"usage":null}}', False),
        (b'{"type":"response.output_text.delta","delta":"\\"type\\":\\"response.completed\\""}', False),
        (b'{"type":"response.completed","response":{}}', True),
        (b'{"type":"response.failed","response":{"error":{"code":"server_error"}}}', True),
        (b'{"type":"response.incomplete","response":{}}', True),
        (b'{"type":"error","code":null,"message":"m"}', True),
        (b'{"error":{"code":"engine_died"}}', True),
        (b"[DONE]", False),
        (b"no json", False),
        (b"\xff", False),
    ],
)  # fmt: skip
def test_the_last_event_is_known(data: bytes, is_last: bool) -> None:
    assert read_event(data).is_last is is_last


def test_the_next_number_is_one_more_than_the_last() -> None:
    progress = Progress()
    assert progress.next_number == 0
    progress.note(b'{"type":"response.created","sequence_number":0}')
    progress.note(b'{"type":"response.output_text.delta","sequence_number":1}')
    progress.note(b'{"type":"unnumbered"}')
    assert (progress.next_number, progress.is_done) == (2, False)
    progress.note(b'{"type":"response.completed","sequence_number":2}')
    progress.note(b"[DONE]")
    assert progress.is_done


def test_usage_is_told_in_the_words_of_chat() -> None:
    body = {
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 1},
            "total_tokens": 10,
        }
    }
    usage = read_response(json.dumps(body).encode()).usage
    assert usage is not None
    assert usage.usage() == Usage(
        prompt_tokens=7,
        completion_tokens=3,
        total_tokens=10,
        prompt_tokens_details=PromptDetails(4),
        completion_tokens_details=CompletionDetails(1),
    )
    assert read_response(b"no json").usage is None


def test_an_error_is_an_event_of_its_own_form() -> None:
    raw = write_error_event(UpstreamConnectionError(upstream="a", reason="cut"), 7)
    event = sse.read_event(raw)
    assert event.event == b"error"
    assert json.loads(event.data or b"") == {
        "type": "error",
        "code": "upstream_connection_error",
        "message": "The connection to a failed: cut.",
        "param": None,
        "sequence_number": 7,
    }
    assert raw.endswith(b"\n\n")
