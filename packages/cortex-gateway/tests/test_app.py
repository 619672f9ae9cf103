# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole gateway comes to its end: what runs may end, what waits is told, what does not end is cut visibly."""

import asyncio
from typing import Any

from cortex_core import sse
from cortex_core.catalogue import Model
from cortex_core.testing import make_state

SSE = [(b"content-type", b"text/event-stream")]
ONE = b'data: {"choices":[{"delta":{"content":"one"},"finish_reason":"stop"}]}\n\n'
ECHO = [Model(id="m", harness="echo")]


async def test_a_running_answer_ends_and_a_new_request_is_refused(fake: Any, start: Any) -> None:
    neuron, gate = fake(make_state("m")), asyncio.Event()
    neuron.answer = lambda n: (200, SSE, [ONE, gate, sse.DONE])
    async with start(neuron) as fleet:
        running = asyncio.create_task(fleet.ask(stream=True))
        await neuron.began.wait()
        draining = asyncio.create_task(fleet.gateway.drain(5))
        await asyncio.sleep(0)
        refused = await fleet.ask()
        assert (refused.status, refused.json["error"]["code"]) == (503, "shutting_down")
        assert refused.header(b"retry-after") == b"15"
        assert (await fleet.get("/health"))["status"] == "ok"
        assert not draining.done()
        gate.set()
        assert (await running).body == ONE + sse.DONE
        async with asyncio.timeout(1):
            await draining


async def test_a_request_that_waits_for_a_load_gets_its_503_at_once(fake: Any, start: Any) -> None:
    neuron, gate = fake(), asyncio.Event()

    async def hang(body: dict[str, Any]) -> None:
        await gate.wait()

    neuron.load = hang
    async with start(neuron, models=ECHO) as fleet:
        held = [asyncio.create_task(fleet.ask()) for _ in range(3)]
        while not neuron.loads:
            await asyncio.sleep(0)
        async with asyncio.timeout(1):
            await fleet.gateway.drain(60)
            answers = await asyncio.gather(*held)
        gate.set()
    told = [(answer.status, answer.json["error"]["code"]) for answer in answers]
    assert told == [(503, "shutting_down")] * 3
    assert all(answer.header(b"retry-after") for answer in answers)


async def test_what_does_not_end_in_time_ends_in_an_error_event(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m"))
    neuron.answer = lambda n: (200, SSE, [ONE, None])
    async with start(neuron) as fleet:
        running = asyncio.create_task(fleet.ask(stream=True))
        await neuron.began.wait()
        async with asyncio.timeout(2):
            await fleet.gateway.drain(0.01)
            answer = await running
            await neuron.left.wait()
    one, error, done, _ = answer.body.split(b"\n\n")
    assert one + b"\n\n" == ONE
    assert b'"code":"shutting_down"' in error
    assert done == b"data: [DONE]"


async def test_a_whole_answer_that_does_not_end_in_time_is_a_503(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m"))
    neuron.answer = lambda n: (200, [], [b"half", None])
    async with start(neuron) as fleet:
        running = asyncio.create_task(fleet.ask())
        await neuron.began.wait()
        async with asyncio.timeout(2):
            await fleet.gateway.drain(0.01)
            answer = await running
            await neuron.left.wait()
        lines = await fleet.metrics()
    assert (answer.status, answer.json["error"]["code"]) == (503, "shutting_down")
    assert 'cortex_request_errors_total{model="m",node="a"} 1.0' in lines


async def test_a_request_that_has_no_answer_yet_is_cut_too(fake: Any, start: Any) -> None:
    neuron, silent = fake(make_state("m")), asyncio.Event()

    async def hang(*_: Any) -> None:
        neuron.began.set()
        await silent.wait()

    neuron._serve_answer = hang
    async with start(neuron) as fleet:
        running = asyncio.create_task(fleet.ask(stream=True))
        await neuron.began.wait()
        async with asyncio.timeout(2):
            await fleet.gateway.drain(0.01)
            answer = await running
        silent.set()
    assert (answer.status, answer.json["error"]["code"]) == (503, "shutting_down")
