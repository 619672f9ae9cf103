# SPDX-License-Identifier: GPL-3.0-or-later
"""Anthropic's API through the gateway: translated on the way in and out, errors in its own shape, counted like any."""

import json
from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.testing import make_state

ECHO = [Model(id="m", harness="echo")]
SSE = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json")]
VERSION = [(b"anthropic-version", b"2023-06-01"), (b"x-request-id", b"r1")]
ASKED = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
STREAM = [
    b'data: {"id":"chatcmpl-1","model":"m","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"one"}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}}\n\n',
    b': usage {"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}\n\ndata: [DONE]\n\n',
]
WHOLE = {
    "id": "chatcmpl-1",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "one"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
}  # fmt: skip


async def post(fleet: Any, **fields: Any) -> Any:
    body = json.dumps({"model": "m", **ASKED, **fields}).encode()
    return await fleet.ask(path="/v1/messages", body=body, headers=VERSION)


async def test_a_stream_is_translated_and_counted(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m"))
    neuron.answer = lambda n: (200, SSE, STREAM)
    async with start(neuron) as fleet:
        answer = await post(fleet, stream=True, service_tier="auto")
        metrics = await fleet.metrics()
    ((path, headers, got),) = neuron.asked
    assert b"anthropic-version" not in headers  # or it would answer in that dialect itself
    assert (path, got["messages"]) == ("/v1/chat/completions", ASKED["messages"])
    events = [line[7:] for line in answer.body.decode().split("\n") if line.startswith("event: ")]
    assert events == [
        "message_start", "ping", "content_block_start", "content_block_delta",
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert answer.header(b"x-cortex-dropped") == b"service_tier"
    assert b"usage {" not in answer.body
    assert 'cortex_prompt_tokens_total{model="m",node="a"} 7.0' in metrics


async def test_a_whole_answer_is_a_message(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m"))
    neuron.answer = lambda n: (200, JSON, [json.dumps(WHOLE).encode()])
    async with start(neuron) as fleet:
        answer = await post(fleet)
    assert (answer.status, answer.json["type"]) == (200, "message")
    assert answer.json["content"][0]["text"] == "one"
    assert answer.json["stop_reason"] == "end_turn"
    assert answer.header(b"x-cortex-dropped") is None


@pytest.mark.parametrize("version", [b"2023-06-01", b"2026-10-21"])
@pytest.mark.parametrize("key", [(b"x-api-key", b"k"), (b"authorization", b"Bearer k")])
@pytest.mark.parametrize("query", [b"", b"beta=true"])
async def test_every_version_and_key_is_taken_with_the_beta_query_and_without(
    fake: Any, start: Any, version: bytes, key: tuple[bytes, bytes], query: bytes
) -> None:
    neuron = fake(make_state("m"))
    neuron.answer = lambda n: (200, JSON, [json.dumps(WHOLE).encode()])
    sent = [(b"anthropic-version", version), (b"anthropic-beta", b"a-2026-01-01,b"), key]
    async with start(neuron) as fleet:
        body = json.dumps({"model": "m", **ASKED}).encode()
        answer = await fleet.ask(path="/v1/messages", query=query, body=body, headers=sent)
        listed = await fleet.get("/v1/models", headers=sent)
    assert (answer.status, answer.json["content"][0]["text"]) == (200, "one")
    assert listed["data"][0]["type"] == "model"
    ((path, headers, _),) = neuron.asked
    assert path == "/v1/chat/completions"
    assert not headers.keys() & {
        b"anthropic-version",
        b"anthropic-beta",
        b"x-api-key",
        b"authorization",
    }


async def test_errors_have_anthropics_envelope_and_status(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m"))
    told = b'{"error": {"message": "later", "code": "queue_full"}}'
    neuron.answer = lambda n: (503, [*JSON, (b"retry-after", b"3")], [told])
    async with start(neuron) as fleet:
        busy = await post(fleet)
        unknown = await post(fleet, model="nobody/knows")
        wrong = await post(fleet, max_tokens="many")
    assert (busy.status, busy.json["error"]["type"]) == (529, "overloaded_error")
    assert busy.header(b"retry-after") == b"3"
    assert (unknown.status, unknown.json["error"]["type"]) == (404, "not_found_error")
    assert (wrong.status, wrong.json["error"]["type"]) == (400, "invalid_request_error")
    for answer in (busy, unknown, wrong):
        assert (answer.json["type"], answer.json["request_id"]) == ("error", "r1")


async def test_a_rule_that_fires_is_counted_and_can_be_switched_off(fake: Any, start: Any) -> None:
    billing = "x-anthropic-billing-header: cc_version=1;\nYou are helpful."
    for hygiene, system in (
        ({}, "You are helpful."),
        ({"claude_code_billing_header": False}, billing),
    ):
        neuron = fake(make_state("m"))
        neuron.answer = lambda n: (200, JSON, [json.dumps(WHOLE).encode()])
        async with start(neuron, prefix_hygiene=hygiene) as fleet:
            await post(fleet, system=billing)
            metrics = await fleet.metrics()
        assert neuron.asked[0][2]["messages"][0] == {"role": "system", "content": system}
        fired = 'cortex_prefix_hygiene_total{rule="claude_code_billing_header"} 1.0' in metrics
        assert fired == (not hygiene)


async def test_models_are_listed_in_the_shape_of_who_asks(fake: Any, start: Any) -> None:
    async with start(fake(make_state("m")), models=ECHO) as fleet:
        assert (await fleet.get("/v1/models"))["object"] == "list"
        theirs = await fleet.get("/v1/models", headers=VERSION)
        one = await fleet.get("/v1/models/m", headers=VERSION)
    assert [(entry["type"], entry["id"]) for entry in theirs["data"]] == [("model", "m")]
    assert theirs["has_more"] is False
    assert (one["type"], one["id"]) == ("model", "m")
