# SPDX-License-Identifier: GPL-3.0-or-later
"""Every inference route through the daemon: answered by the engine, or refused in clear words."""

import json
from typing import Any

import pytest

from cortex_core import sse
from neuron.testing import Served

pytestmark = pytest.mark.slow

WRITER = "echo/writer"
EMBEDDER = "echo/embedder?embeddings=1"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "one two"}]},
    "/v1/completions": {"prompt": "one two"},
    "/v1/responses": {"input": "one two"},
    "/v1/embeddings": {"input": "one two"},
    "/v1/score": {"text_1": "one two", "text_2": "one two"},
    "/v1/rerank": {"query": "one two", "documents": ["three", "one two"]},
    "/tokenize": {"prompt": "one two"},
}
WRITTEN = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
EMBEDDED = ["/v1/embeddings", "/v1/score", "/v1/rerank"]


def body(path: str, model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, **BODIES[path], **fields}


async def test_each_route_is_answered_by_a_model_that_serves_it(served: Served) -> None:
    await served.load(WRITER)
    await served.load(EMBEDDER)
    served_by = [(WRITER, WRITTEN), (EMBEDDER, EMBEDDED), (WRITER, ["/tokenize"]), (EMBEDDER, ["/tokenize"])]  # fmt: skip
    answers = {}
    for model, paths in served_by:
        for path in paths:
            status, answers[path], _ = await served.post(path, body(path, model))
            assert status == 200, answers[path]
    assert answers["/v1/responses"]["output"][0]["content"][0]["text"] == "one two"
    assert len(answers["/v1/embeddings"]["data"][0]["embedding"]) == 64
    assert answers["/v1/score"]["data"][0]["score"] == pytest.approx(1.0)
    assert [r["index"] for r in answers["/v1/rerank"]["results"]] == [1, 0]
    assert answers["/tokenize"]["count"] == 2


@pytest.mark.parametrize(
    ("model", "paths", "told"), [(WRITER, EMBEDDED, "text"), (EMBEDDER, WRITTEN, "embeddings")]
)
async def test_what_a_model_does_not_serve_is_said_with_what_it_does(
    served: Served, model: str, paths: list[str], told: str
) -> None:
    await served.load(model)
    for path in paths:
        status, answer, headers = await served.post(path, body(path, model, stream=False))
        error = answer["error"]
        assert (status, error["code"], error["param"]) == (422, "wrong_modality", "model")
        assert error["message"].startswith(
            f"The model '{model}' does not serve {path}; it has the capabilities: {told}."
        )
        assert b"retry-after" not in headers
    async with served.client.open("GET", "/metrics") as reply:
        text = (await reply.read()).decode()
    assert f'neuron_requests_total{{code="wrong_modality",model="{model}"}} 3.0' in text


async def test_a_route_that_nobody_serves_is_not_found(served: Served) -> None:
    await served.load(WRITER)
    status, answer, _ = await served.post("/v1/audio/speech", {"model": WRITER})
    assert (status, answer["error"]["code"]) == (404, "route_not_found")


async def test_a_stream_of_responses_is_whole_and_has_no_done(served: Served) -> None:
    await served.load(WRITER)
    headers = [(b"x-cortex-usage", b"1")]
    status, raw, _ = await served.post(
        "/v1/responses", body("/v1/responses", WRITER, stream=True), headers
    )
    events = [sse.read_event(event) for event in sse.Splitter().feed(raw)]
    assert status == 200
    assert b"[DONE]" not in raw
    assert not [event for event in events if event.comment]
    data = [json.loads(event.data or b"") for event in events]
    assert [event.event.decode() for event in events] == [d["type"] for d in data]
    assert [d["sequence_number"] for d in data] == list(range(len(data)))
    assert data[-1]["response"]["usage"]["total_tokens"] == 4


async def test_a_stream_of_responses_that_breaks_ends_in_an_error_event_of_its_own(
    served: Served,
) -> None:
    model = "echo/m?fail=stream&tokens=50"
    await served.load(model)
    _, raw, _ = await served.post("/v1/responses", body("/v1/responses", model, stream=True))
    events = [sse.read_event(event) for event in sse.Splitter().feed(raw)]
    *before, last = [json.loads(event.data or b"") for event in events]
    assert (events[-1].event, last["type"], last["code"]) == (b"error", "error", "engine_died")
    assert "exit code 1" in last["message"]
    assert last["sequence_number"] == before[-1]["sequence_number"] + 1


async def test_vectors_come_as_numbers_or_as_base64(served: Served) -> None:
    await served.load(EMBEDDER)
    path = "/v1/embeddings"
    _, numbers, _ = await served.post(path, body(path, EMBEDDER, dimensions=4))
    _, packed, _ = await served.post(
        path, body(path, EMBEDDER, dimensions=4, encoding_format="base64")
    )
    assert len(numbers["data"][0]["embedding"]) == 4
    assert len(packed["data"][0]["embedding"]) == 24
    assert numbers["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
