# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients whose requests are held get signs of life, an honest status while that can be, and an honest end after that."""

import asyncio
from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.errors import LoadFailedError
from cortex_core.node import Progress
from cortex_core.sse import DONE
from cortex_core.testing import make_state
from cortex_gateway.keeping import write_comment

ECHO = [Model(id="m", harness="echo")]
SSE = [(b"content-type", b"text/event-stream")]
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
SOON: dict[str, Any] = {"commit_after_s": 0, "keepalive_s": 0.01}
MESSAGES = {
    "path": "/v1/messages",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "x"}],
}


@pytest.mark.parametrize(
    ("progress", "comment"),
    [
        (Progress(phase="queued"), b": phase=queued\n\n"),
        (
            Progress(phase="loading weights\n", ratio=0.5, eta_s=12.4),
            b": phase=loading_weights_ ratio=0.50 eta_s=12\n\n",
        ),
    ],
)
def test_how_far_it_is_is_a_comment(progress: Progress, comment: bytes) -> None:
    assert write_comment(progress) == comment


def slow_neuron(fake: Any, gate: asyncio.Event, error: Exception | None = None) -> Any:
    neuron = fake()
    done = neuron.load

    async def slow(body: dict[str, Any]) -> None:
        await gate.wait()
        if error:
            raise error
        await done(body)

    neuron.load = slow
    neuron.answer = lambda n: (200, SSE, [EVENT, END, DONE])
    return neuron


def opens(gate: asyncio.Event, after: int) -> Any:
    """Lets the load end when the client has had so many messages."""
    count = 0

    def note(message: Any) -> None:
        nonlocal count
        count += 1
        if count == after:
            gate.set()

    return note


async def test_a_stream_that_is_held_gets_headers_and_comments_and_then_its_answer(
    fake: Any, start: Any
) -> None:
    gate = asyncio.Event()
    async with start(slow_neuron(fake, gate), models=ECHO, loading=SOON) as fleet:
        answer = await fleet.ask(stream=True, on_message=opens(gate, after=4))
        lines = await fleet.metrics()
    assert answer.status == 200
    assert answer.header(b"content-type") == b"text/event-stream"
    assert answer.header(b"x-cortex-decision") == b"load"
    assert answer.chunks[:2] == [b": phase=loading\n\n"] * 2
    said = b"".join(chunk for chunk in answer.chunks if not chunk.startswith(b":"))
    assert said == EVENT + END + DONE
    assert 'cortex_requests_total{model="m",node="a"} 1.0' in lines


async def test_anthropic_s_clients_get_pings(fake: Any, start: Any) -> None:
    gate = asyncio.Event()
    async with start(slow_neuron(fake, gate), models=ECHO, loading=SOON) as fleet:
        answer = await fleet.ask(stream=True, on_message=opens(gate, after=3), **MESSAGES)
    first, *_ = answer.chunks
    assert first == b': phase=loading\n\nevent: ping\ndata: {"type":"ping"}\n\n'
    assert b"event: message_start" in answer.body
    assert answer.body.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


async def test_a_failure_before_the_headers_has_its_status(fake: Any, start: Any) -> None:
    gate = asyncio.Event()
    gate.set()
    error = LoadFailedError(model="m", node="a", load_kind="engine_start_failed", reason="boom")
    async with start(slow_neuron(fake, gate, error), models=ECHO) as fleet:
        answer = await fleet.ask(stream=True)
    assert (answer.status, answer.json["error"]["code"]) == (502, "load_failed")


@pytest.mark.parametrize("fields", [{}, MESSAGES], ids=["openai", "anthropic"])
async def test_a_failure_after_the_headers_is_told_in_the_stream(
    fake: Any, start: Any, fields: Any
) -> None:
    gate = asyncio.Event()
    error = LoadFailedError(model="m", node="a", load_kind="engine_start_failed", reason="boom")
    neuron = slow_neuron(fake, gate, error)
    async with start(neuron, models=ECHO, loading=SOON) as fleet:
        answer = await fleet.ask(stream=True, on_message=opens(gate, after=2), **fields)
        lines = await fleet.metrics()
    assert answer.status == 200
    assert b"boom" in answer.body
    assert b'"load_failed"' in answer.body
    if not fields:
        assert answer.body.endswith(DONE)
    assert 'cortex_rejections_total{code="load_failed"} 1.0' in lines


async def test_a_refusal_of_the_neuron_after_the_headers_is_told_in_the_stream(
    fake: Any, start: Any
) -> None:
    gate = asyncio.Event()
    neuron = slow_neuron(fake, gate)
    body = b'{"error": {"message": "too long", "code": "context_length_exceeded"}}'
    neuron.answer = lambda n: (400, [(b"content-type", b"application/json")], [body])
    async with start(neuron, models=ECHO, loading=SOON) as fleet:
        answer = await fleet.ask(stream=True, on_message=opens(gate, after=2))
    assert answer.status == 200
    assert b"too long" in answer.body
    assert b'"code":"context_length_exceeded"' in answer.body
    assert answer.body.endswith(DONE)


async def test_who_wants_no_stream_gets_no_sign_and_an_honest_503_with_an_eta(
    fake: Any, start: Any
) -> None:
    gate = asyncio.Event()
    neuron = slow_neuron(fake, gate)
    neuron.states["m"] = make_state("m", "loading", progress=Progress(phase="loading", eta_s=40.0))
    loading = {**SOON, "load_wait_s": 0.1}
    async with start(neuron, models=ECHO, loading=loading) as fleet:
        for fields in ({}, {"path": "/v1/embeddings", "stream": True}):
            answer = await fleet.ask(**fields)
            assert (answer.status, answer.json["error"]["code"]) == (503, "model_loading")
            assert answer.header(b"retry-after") == b"40"
            assert answer.json["error"]["eta_s"] == 40.0


async def test_another_replica_is_asked_after_the_headers_too(fake: Any, start: Any) -> None:
    gate = asyncio.Event()
    first, second = slow_neuron(fake, gate), fake()
    second.answer = lambda n: (200, SSE, [EVENT, END, DONE])

    def refuse(number: int) -> Any:
        second.states["m"] = make_state("m")
        return 503, [], [b"{}"]

    async with start(first, second, models=ECHO, loading=SOON) as fleet:
        first.answer = refuse
        asked = asyncio.create_task(fleet.ask(stream=True))
        while not first.loads:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        second.states["m"] = make_state("m")
        await fleet.gateway.poller.poll("b")
        gate.set()
        answer = await asked
    assert answer.status == 200
    assert answer.body.endswith(EVENT + END + DONE)


def silent_neuron(fake: Any, gate: asyncio.Event, *head: bytes) -> Any:
    """Has its model up, and says nothing to a request until the gate opens: nor is its head told before, unless by b""."""
    neuron = fake(make_state("m"))
    neuron.answer = lambda n: (200, SSE, [*head, gate, EVENT, END, DONE])
    return neuron


@pytest.mark.parametrize("head", [[], [b""]], ids=["no head", "a head"])
async def test_who_waits_for_a_silent_node_is_kept_too(
    fake: Any, start: Any, head: list[bytes]
) -> None:
    gate = asyncio.Event()
    neuron = silent_neuron(fake, gate, *head)
    async with start(neuron, models=ECHO, loading=SOON) as fleet:
        answer = await fleet.ask(stream=True, on_message=opens(gate, after=3))
    assert answer.chunks[:2] == [b": phase=waiting\n\n"] * 2
    assert answer.body.endswith(b"\n\n" + EVENT + END + DONE)
    assert answer.header(b"x-cortex-node") == b"a"
    assert answer.header(b"x-cortex-decision") == b"serve"


async def test_who_has_an_answer_soon_gets_nothing_else(fake: Any, start: Any) -> None:
    gate = asyncio.Event()
    gate.set()
    async with start(silent_neuron(fake, gate), models=ECHO) as fleet:
        answer = await fleet.ask(stream=True)
    assert answer.body == EVENT + END + DONE


async def test_a_silent_node_that_refuses_in_the_end_is_told_in_the_stream_or_passed_by(
    fake: Any, start: Any
) -> None:
    refusal = b'{"error": {"message": "too many", "code": "queue_full"}}'
    gate = asyncio.Event()
    first, second = fake(make_state("m")), fake(make_state("m"))
    first.answer = lambda n: (429, [(b"content-type", b"application/json")], [gate, refusal])
    second.answer = lambda n: (200, SSE, [EVENT, END, DONE])
    async with start(first, models=ECHO, loading=SOON) as fleet:
        alone = await fleet.ask(stream=True, on_message=opens(gate, after=2))
    gate.clear()
    async with start(first, second, models=ECHO, loading=SOON) as fleet:
        beside = await fleet.ask(stream=True, on_message=opens(gate, after=2))
    assert alone.status == 200
    assert b'"code":"queue_full"' in alone.body
    assert alone.body.endswith(DONE)
    assert beside.body.startswith(b": phase=waiting")
    assert beside.body.endswith(EVENT + END + DONE)


async def test_what_is_left_out_is_named_though_the_headers_go_early(fake: Any, start: Any) -> None:
    gate = asyncio.Event()
    for neuron in (slow_neuron(fake, gate), silent_neuron(fake, gate)):
        gate.clear()
        asked = {**MESSAGES, "container": "c"}
        async with start(neuron, models=ECHO, loading=SOON) as fleet:
            answer = await fleet.ask(stream=True, on_message=opens(gate, after=2), **asked)
        assert answer.header(b"x-cortex-dropped") == b"container"
