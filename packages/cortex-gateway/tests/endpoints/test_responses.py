# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's Responses through the gateway, before an upstream that has no such path: put to it as chat."""

import json
from typing import Any

import pytest

from cortex_core.testing import make_state

SSE = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json")]
NO_ROUTE = (
    b'{"error":{"code":"route_not_found","message":"There is no route POST /v1/responses here."}}'
)
STREAM = [
    b'data: {"id":"chatcmpl-1","model":"m","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"one"}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b': usage {"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}\n\ndata: [DONE]\n\n',
]
WHOLE = {
    "id": "chatcmpl-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "one"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
}  # fmt: skip


def speaking_chat_alone(fake: Any, *answer: Any) -> Any:
    neuron = fake(make_state("m"))
    neuron.answer = lambda n: answer if n else (404, JSON, [NO_ROUTE])
    return neuron


async def post(fleet: Any, **fields: Any) -> Any:
    body = json.dumps({"model": "m", "input": "hi", **fields}).encode()
    return await fleet.ask(path="/v1/responses", body=body, headers=[(b"x-request-id", b"r1")])


async def test_a_whole_answer_is_translated_and_counted_once(fake: Any, start: Any) -> None:
    neuron = speaking_chat_alone(fake, 200, JSON, [json.dumps(WHOLE).encode()])
    async with start(neuron) as fleet:
        answer = await post(fleet, include=["reasoning.encrypted_content"])
        metrics = await fleet.metrics()
    assert [(path, sorted(got)) for path, _, got in neuron.asked] == [
        ("/v1/responses", ["include", "input", "model"]),
        ("/v1/chat/completions", ["messages", "model"]),
    ]
    assert (answer.status, answer.json["object"], answer.json["status"]) == (200, "response", "completed")  # fmt: skip
    assert answer.json["output"][0]["content"][0]["text"] == "one"
    assert answer.header(b"x-cortex-dropped") == b"include"
    assert 'cortex_requests_total{model="m",node="a"} 1.0' in metrics
    assert 'cortex_prompt_tokens_total{model="m",node="a"} 7.0' in metrics


async def test_a_stream_is_translated(fake: Any, start: Any) -> None:
    neuron = speaking_chat_alone(fake, 200, SSE, STREAM)
    async with start(neuron) as fleet:
        answer = await post(fleet, stream=True)
    names = [line[7:] for line in answer.body.decode().split("\n") if line.startswith("event: ")]
    assert (names[0], names[-1]) == ("response.created", "response.completed")
    assert b": usage" not in answer.body
    assert b"[DONE]" not in answer.body


async def test_a_stream_that_breaks_off_fails(fake: Any, start: Any) -> None:
    neuron = speaking_chat_alone(fake, 200, SSE, STREAM[:2])
    async with start(neuron) as fleet:
        answer = await post(fleet, stream=True)
        metrics = await fleet.metrics()
    names = [line[7:] for line in answer.body.decode().split("\n") if line.startswith("event: ")]
    assert names[-2:] == ["error", "response.failed"]
    assert 'cortex_request_errors_total{model="m",node="a"} 1.0' in metrics


async def test_what_needs_a_server_s_memory_is_refused_and_is_no_error_of_ours(
    fake: Any, start: Any
) -> None:
    neuron = speaking_chat_alone(fake, 200, JSON, [b"{}"])
    async with start(neuron) as fleet:
        answer = await post(fleet, previous_response_id="resp_1")
        metrics = await fleet.metrics()
    assert (answer.status, answer.json["error"]["code"]) == (400, "chained_conversation_not_supported")  # fmt: skip
    assert answer.header(b"retry-after") is None
    assert not any("request_errors_total{" in line for line in metrics)


@pytest.mark.parametrize("status", [404, 200, 422])
async def test_what_is_no_missing_path_is_told_as_it_is(fake: Any, start: Any, status: int) -> None:
    neuron = fake(make_state("m"))
    told = b'{"error":{"code":"model_not_found","message":"no model m"}}'
    neuron.answer = lambda n: (status, JSON, [told])
    async with start(neuron) as fleet:
        answer = await post(fleet)
    assert (answer.status, answer.body) == (status, told)
    assert len(neuron.asked) == (
        2 if status == 404 else 1
    )  # once more, after a look at what it has


@pytest.mark.parametrize("how", ["whole", "stream", "chat"])
async def test_what_a_neuron_left_out_is_named_beside_what_we_did(
    fake: Any, start: Any, how: str
) -> None:
    told = (b"x-cortex-dropped", b"input.web_search_call")
    if how == "chat":
        neuron = speaking_chat_alone(fake, 200, [*JSON, told], [json.dumps(WHOLE).encode()])
    else:
        neuron = fake(make_state("m"))
        fields = SSE if how == "stream" else JSON
        neuron.answer = lambda n: (200, [*fields, told], [b"{}"])
    async with start(neuron) as fleet:
        answer = await post(fleet, truncation="auto")
    ours = b"truncation, " if how == "chat" else b""
    assert answer.header(b"x-cortex-dropped") == ours + told[1]
