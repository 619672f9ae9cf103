# SPDX-License-Identifier: GPL-3.0-or-later
"""Models are loaded once however many ask; who waits is held, told, and let go."""

import asyncio
from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.errors import (
    EngineDiedError,
    InsufficientVramError,
    LoadFailedError,
    LoadRefusedError,
    ModelNotFoundError,
    ShuttingDownError,
    SpecConflictError,
)
from cortex_core.testing import collect, make_state

ECHO = [Model(id="m", harness="echo")]
M = make_state("m")


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


async def test_fifty_first_requests_make_one_load_and_fifty_answers(fake: Any, start: Any) -> None:
    neuron, gate = fake(), asyncio.Event()
    done = neuron.load

    async def slow(body: dict[str, Any]) -> None:
        await gate.wait()
        await done(body)

    neuron.load = slow
    models = [Model(id="m", harness="echo", quant="q4", max_model_len=99)]
    async with start(neuron, models=models) as fleet:
        requests = [asyncio.create_task(fleet.ask()) for _ in range(50)]
        while not neuron.loads:
            await asyncio.sleep(0)
        gate.set()
        answers = await asyncio.gather(*requests)
        lines = await fleet.metrics()
    assert [answer.status for answer in answers] == [200] * 50
    wanted = {"model_id": "m", "harness": "echo", "quant": "q4", "max_model_len": 99}
    assert neuron.loads == [wanted]
    decisions = [answer.header(b"x-cortex-decision") for answer in answers]
    assert (decisions.count(b"load"), decisions.count(b"wait")) == (1, 49)
    assert 'cortex_cold_starts_total{model="m",node="a"} 1.0' in lines
    assert 'cortex_requests_total{model="m",node="a"} 50.0' in lines
    assert 'cortex_load_seconds_count{model="m",node="a"} 1.0' in lines


@pytest.mark.parametrize(
    ("error", "status", "code", "kind", "retry"),
    [
        (
            LoadRefusedError(model="m", load_kind="quant_not_found", reason="no q4", suggestion="Ask q8."),
            502, "load_failed", "quant_not_found", None,
        ),
        (
            LoadFailedError(model="m", node="x", load_kind="engine_start_failed", reason="boom"),
            502, "load_failed", "engine_start_failed", None,
        ),
        (
            LoadRefusedError(
                model="m", load_kind="repo_fetch_failed", reason="no answer", suggestion="Wait.", retry_after_s=30.0
            ),
            503, "no_healthy_node", None, b"30",
        ),
        (EngineDiedError(model="m", reason="lost", retry_after_s=2.0), 503, "no_healthy_node", None, b"2"),
        (InsufficientVramError(model="m", reason="held"), 503, "insufficient_vram", None, b"5"),
        (ShuttingDownError(daemon="neuron"), 503, "no_healthy_node", None, b"15"),
    ],
)  # fmt: skip
async def test_a_load_that_fails_is_told_to_everyone_and_tried_anew_by_the_next(
    fake: Any, start: Any, error: Exception, status: int, code: str, kind: str | None, retry: Any
) -> None:
    neuron, gate = fake(), asyncio.Event()

    async def fail(body: dict[str, Any]) -> None:
        await gate.wait()
        raise error

    neuron.load = fail
    async with start(neuron, models=ECHO) as fleet:
        requests = [asyncio.create_task(fleet.ask()) for _ in range(5)]
        while not neuron.loads:
            await asyncio.sleep(0)
        gate.set()
        answers = await asyncio.gather(*requests)
        assert [error_of(answer) for answer in answers] == [(status, code)] * 5
        assert answers[0].json["error"].get("load_kind") == kind
        assert answers[0].header(b"retry-after") == retry
        assert len(neuron.loads) == 1
        assert error_of(await fleet.ask()) == (status, code)
        assert len(neuron.loads) == 2
        lines = await fleet.metrics()
    assert f'cortex_rejections_total{{code="{code}"}} 6.0' in lines
    assert not [line for line in lines if line.startswith("cortex_requests_total{")]


async def test_who_was_a_moment_late_is_served_by_what_somebody_else_brought_up(
    fake: Any, start: Any
) -> None:
    neuron = fake()
    done = neuron.load

    async def conflict(body: dict[str, Any]) -> None:
        await done(body)  # an operator, with another spec
        raise SpecConflictError(model="m", differs="quant")

    neuron.load = conflict
    async with start(neuron, models=ECHO) as fleet:
        answer = await fleet.ask()
    assert (answer.status, len(neuron.loads)) == (200, 1)


async def test_a_conflict_with_what_is_not_there_is_told(fake: Any, start: Any) -> None:
    neuron = fake()

    async def conflict(_: dict[str, Any]) -> None:
        raise SpecConflictError(model="m", differs="quant")

    neuron.load = conflict
    async with start(neuron, models=ECHO) as fleet:
        assert error_of(await fleet.ask()) == (502, "load_failed")


async def test_a_sleeper_that_is_given_up_before_its_wake_is_loaded_instead(
    fake: Any, start: Any
) -> None:
    neuron = fake(make_state("m", "sleeping", can_sleep=True))

    async def give_up(how: str, model_id: str) -> None:
        del neuron.states[model_id]
        raise ModelNotFoundError(model=model_id)

    neuron.move = give_up
    async with start(neuron, models=ECHO) as fleet:
        answer = await fleet.ask()
        lines = await fleet.metrics()
    assert (answer.status, answer.header(b"x-cortex-decision")) == (200, b"wake")
    assert neuron.moves == [("wake", "m")]
    assert len(neuron.loads) == 1
    assert 'cortex_cold_starts_total{model="m",node="a"} 1.0' in lines
    assert not [line for line in lines if line.startswith("cortex_wakes_total{")]


async def test_a_load_that_takes_too_long_lets_go_of_the_request_and_goes_on(
    fake: Any, start: Any
) -> None:
    neuron, gate = fake(), asyncio.Event()
    done = neuron.load

    async def slow(body: dict[str, Any]) -> None:
        await gate.wait()
        await done(body)

    neuron.load = slow
    async with start(neuron, models=ECHO, loading={"load_wait_s": 0.05}) as fleet:
        answer = await fleet.ask()
        assert error_of(answer) == (503, "model_loading")
        assert answer.header(b"retry-after") == b"5"
        request = asyncio.create_task(fleet.ask())
        await asyncio.sleep(0)
        gate.set()
        assert (await request).status == 200
    assert len(neuron.loads) == 1


async def test_a_waiter_that_leaves_does_not_end_the_load(fake: Any, start: Any) -> None:
    neuron, gate, leave = fake(), asyncio.Event(), asyncio.Event()
    done = neuron.load

    async def slow(body: dict[str, Any]) -> None:
        await gate.wait()
        await done(body)

    neuron.load = slow
    async with start(neuron, models=ECHO) as fleet:
        first = asyncio.create_task(fleet.ask(leave=leave))
        while not neuron.loads:
            await asyncio.sleep(0)
        second = asyncio.create_task(fleet.ask())
        leave.set()
        await first
        gate.set()
        assert (await second).status == 200
    assert len(neuron.loads) == 1


@pytest.mark.slow
async def test_a_load_that_somebody_else_began_is_joined(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m", "loading"))
    async with start(neuron) as fleet:
        request = asyncio.create_task(fleet.ask())
        while neuron.polls.count("/models") < 2:
            await asyncio.sleep(0)
        neuron.states["m"] = M
        answer = await request
    assert (answer.status, answer.header(b"x-cortex-decision")) == (200, b"wait")
    assert neuron.loads == []


async def test_who_waits_for_a_load_at_a_node_that_leaves_is_served_by_another(
    fake: Any, start: Any
) -> None:
    leaving, other = fake(make_state("m", "loading")), fake()
    async with start(leaving, other, models=ECHO) as fleet:
        request = asyncio.create_task(fleet.ask())
        while leaving.polls.count("/models") < 2:
            await asyncio.sleep(0)
        await fleet.have(b=fleet.endpoint("b"))
        answer = await request
        steps = (await fleet.get(f"/fleet/requests/{answer.header(b'x-request-id').decode()}"))[
            "steps"
        ]
    assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"b")
    assert [step["decision"] for step in steps] == ["wait", "load", "serve"]  # nothing failed


def gated_neuron(fake: Any, gate: asyncio.Event) -> Any:
    """Its load ends when the gate opens."""
    neuron = fake()
    done = neuron.load

    async def slow(body: dict[str, Any]) -> None:
        await gate.wait()
        await done(body)

    neuron.load = slow
    return neuron


async def drain(fleet: Any, node: str, *, drained: bool = True) -> None:
    path = f"/fleet/nodes/{'drain' if drained else 'undrain'}"
    answer = await collect(fleet.gateway.front, "POST", path, body=b'{"node":"%s"}' % node.encode())
    assert answer.status == 200


@pytest.mark.parametrize("others", [1, 0])
@pytest.mark.parametrize("how", ["drained", "gone"])
async def test_who_waits_for_our_load_at_a_node_that_leaves_looks_elsewhere_at_once(
    fake: Any, start: Any, how: str, others: int
) -> None:
    gate = asyncio.Event()
    leaving = gated_neuron(fake, gate)
    async with start(leaving, *(fake() for _ in range(others)), models=ECHO) as fleet:
        request = asyncio.create_task(fleet.ask())
        while not leaving.loads:
            await asyncio.sleep(0)
        if how == "drained":
            await drain(fleet, "a")
        else:
            await fleet.have(**{"b": fleet.endpoint("b")} if others else {})
        answer = await request
        assert ("a", "m") in fleet.gateway.fleet.view().loads  # it goes on
        gate.set()
    if others:
        assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"b")
    else:
        assert error_of(answer) == (503, "no_healthy_node")


async def test_a_load_at_a_node_that_is_back_is_waited_for_again(fake: Any, start: Any) -> None:
    gate = asyncio.Event()
    neuron = gated_neuron(fake, gate)
    async with start(neuron, models=ECHO) as fleet:
        request = asyncio.create_task(fleet.ask())
        while not neuron.loads:
            await asyncio.sleep(0)
        await drain(fleet, "a")
        assert (await request).status == 503
        await drain(fleet, "a", drained=False)
        request = asyncio.create_task(fleet.ask())
        await asyncio.sleep(0.01)
        assert not request.done()
        gate.set()
        assert (await request).status == 200
    assert len(neuron.loads) == 1


async def test_a_node_that_is_lost_during_a_load_is_told_to_those_who_wait(
    fake: Any, start: Any
) -> None:
    neuron, gate = fake(), asyncio.Event()

    async def hang(body: dict[str, Any]) -> None:
        neuron.down = True
        await gate.wait()

    neuron.load = hang
    async with start(neuron, models=ECHO) as fleet:
        request = asyncio.create_task(fleet.ask())
        while not neuron.down:
            await asyncio.sleep(0)
        for _ in range(3):
            await fleet.poll()
        answer = await request
        assert error_of(answer) == (503, "no_healthy_node")
        assert "lost" in answer.json["error"]["message"]
        assert error_of(await fleet.ask()) == (503, "no_healthy_node")
        gate.set()


async def test_how_long_a_load_will_take_is_what_it_took_there_until_the_neuron_tells(
    fake: Any, start: Any
) -> None:
    neuron, gate = fake(make_state("m", load_s=42.0)), asyncio.Event()

    async def slow(body: dict[str, Any]) -> None:
        await gate.wait()

    neuron.load = slow
    async with start(neuron, models=ECHO, loading={"load_wait_s": 0.02}) as fleet:
        del neuron.states["m"]
        await fleet.poll()
        answer = await fleet.ask()
        gate.set()
    assert error_of(answer) == (503, "model_loading")
    assert answer.header(b"retry-after") == b"42"
    assert answer.json["error"]["eta_s"] == 42.0


async def test_where_a_neuron_says_that_it_serves_is_not_asked(fake: Any, start: Any) -> None:
    """It may name an address of its own, such as a loopback one: the configured endpoint is the one that is used."""
    neuron = fake()
    async with start(neuron, models=ECHO) as fleet:
        assert (await fleet.ask()).status == 200
        await fleet.poll()
    # an answer to anything else would fail
    assert set(neuron.polls) == {"/models", "/health", "/discovery"}
    assert len(neuron.asked) == 1
