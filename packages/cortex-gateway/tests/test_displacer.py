# SPDX-License-Identifier: GPL-3.0-or-later
"""Models make room for others: their work ends first, nothing new is sent, and who waits is served."""

import asyncio
import json
from typing import Any

import pytest
import structlog

from cortex_core.catalogue import Model
from cortex_core.control import DevicePlan, PlanAnswer
from cortex_core.errors import CannotSleepError, WaitTimeoutError
from cortex_core.testing import make_device, make_discovery, make_state
from cortex_gateway.eviction import Displace

GPU = make_discovery(make_device(0, 24_000), harnesses=("echo",))
MODELS = [Model(id=name, harness="echo", vram_mb=20_000) for name in "mxy"]
AT_ONCE: dict[str, Any] = {"min_residency_s": 0, "drain_s": 5}


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["error"]["code"]


async def test_one_makes_room_for_the_other_and_it_is_counted(fake: Any, start: Any) -> None:
    neuron = fake(make_state("x"), found=GPU)
    async with start(neuron, models=MODELS, eviction=AT_ONCE) as fleet:
        for model in ("m", "x", "m"):
            answer = await fleet.ask(model)
            assert (answer.status, answer.header(b"x-cortex-decision")) == (200, b"load")
        lines = await fleet.metrics()
    assert neuron.moves == [("unload", "x"), ("unload", "m"), ("unload", "x")]
    assert [body["model_id"] for body in neuron.loads] == ["m", "x", "m"]
    assert 'cortex_evictions_total{model="x",node="a"} 2.0' in lines
    assert 'cortex_evictions_total{model="m",node="a"} 1.0' in lines


async def test_a_model_that_can_sleeps_and_is_woken(fake: Any, start: Any) -> None:
    neuron = fake(make_state("x", can_sleep=True), found=GPU)
    async with start(neuron, models=MODELS, eviction=AT_ONCE) as fleet:
        assert (await fleet.ask("m")).status == 200
        answer = await fleet.ask("x")
        assert (answer.status, answer.header(b"x-cortex-decision")) == (200, b"wake")
        lines = await fleet.metrics()
    assert neuron.moves == [("sleep", "x"), ("unload", "m"), ("wake", "x")]
    assert len(neuron.loads) == 1
    assert 'cortex_wakes_total{model="x",node="a"} 1.0' in lines
    assert 'cortex_wake_seconds_count{model="x",node="a"} 1.0' in lines


async def test_a_model_that_does_not_sleep_after_all_is_unloaded(fake: Any, start: Any) -> None:
    neuron = fake(make_state("x", can_sleep=True), found=GPU)
    done = neuron.move

    async def stay_awake(how: str, model_id: str) -> None:
        if how == "sleep":
            raise CannotSleepError(model=model_id, harness="echo")
        await done(how, model_id)

    neuron.move = stay_awake
    async with start(neuron, models=MODELS, eviction=AT_ONCE) as fleet:
        assert (await fleet.ask("m")).status == 200
    assert neuron.moves == [("sleep", "x"), ("unload", "x")]


async def test_work_in_flight_ends_before_its_model_makes_room(fake: Any, start: Any) -> None:
    neuron, gate = fake(make_state("x"), found=GPU), asyncio.Event()
    whole = neuron.answer(0)
    neuron.answer = lambda n: (*whole[:2], [gate, *whole[2]]) if n == 0 else whole
    async with start(neuron, models=MODELS, eviction=AT_ONCE) as fleet:
        first = asyncio.create_task(fleet.ask("x"))
        await neuron.began.wait()
        second = asyncio.create_task(fleet.ask("m"))
        while ("a", "m") not in fleet.gateway.fleet.view().loads:
            await asyncio.sleep(0)
        # what comes now waits its turn, and is not sent to a model that leaves
        third = asyncio.create_task(fleet.ask("x"))
        while not fleet.gateway.fleet.view().queued:
            await asyncio.sleep(0)
        assert neuron.moves == []
        gate.set()
        answers = await asyncio.gather(first, second, third)
    assert [answer.status for answer in answers] == [200] * 3
    assert [body["model"] for _, _, body in neuron.asked] == ["x", "m", "x"]
    assert neuron.moves == [("unload", "x"), ("unload", "m")]


async def test_who_waits_outlasts_work_that_takes_longer_than_drain_s(
    fake: Any, start: Any
) -> None:
    neuron, gate = fake(make_state("x"), found=GPU), asyncio.Event()
    whole = neuron.answer(0)
    neuron.answer = lambda n: (*whole[:2], [gate, *whole[2]]) if n == 0 else whole
    rules = {**AT_ONCE, "drain_s": 0.5, "max_wait_s": 20}
    async with start(neuron, models=MODELS, eviction=rules) as fleet:
        first = asyncio.create_task(fleet.ask("x"))
        await neuron.began.wait()
        second = asyncio.create_task(fleet.ask("m"))
        while not fleet.gateway.fleet.view().stayed_s:
            await asyncio.sleep(0.001)
        assert (await fleet.ask("x")).status == 200  # it serves again for as long
        gate.set()
        assert ((await first).status, (await second).status) == (200, 200)
    assert neuron.moves == [("unload", "x")]


async def test_work_that_does_not_end_keeps_its_model_and_is_told(fake: Any, start: Any) -> None:
    neuron, gate = fake(make_state("x"), found=GPU), asyncio.Event()
    whole = neuron.answer(0)
    neuron.answer = lambda n: (*whole[:2], [gate, *whole[2]])
    rules = {**AT_ONCE, "drain_s": 0.05, "max_wait_s": 0.2}
    async with start(neuron, models=MODELS, eviction=rules) as fleet:
        first = asyncio.create_task(fleet.ask("x"))
        await neuron.began.wait()
        answer = await fleet.ask("m")
        assert error_of(answer) == (503, "insufficient_vram")
        assert answer.header(b"retry-after") == b"5"
        assert "x works" in answer.json["error"]["message"]
        gate.set()
        assert (await first).status == 200
        assert (await fleet.ask("x")).status == 200
    assert (neuron.moves, neuron.loads) == ([], [])


async def test_a_neuron_that_keeps_a_model_is_told(fake: Any, start: Any) -> None:
    neuron = fake(make_state("x"), found=GPU)

    async def keep(how: str, model_id: str) -> None:
        raise WaitTimeoutError(model=model_id, waited_s=1, what="its requests to end")

    neuron.move = keep
    async with start(neuron, models=MODELS, eviction=AT_ONCE) as fleet:
        assert error_of(await fleet.ask("m")) == (503, "insufficient_vram")
        assert (await fleet.ask("x")).status == 200


async def test_two_cold_models_do_not_both_evict(fake: Any, start: Any) -> None:
    neuron = fake(make_state("x"), found=GPU)
    async with start(neuron, models=MODELS, eviction=AT_ONCE) as fleet:
        answers = await asyncio.gather(*(fleet.ask(model) for model in "mmymyx"))
    assert [answer.status for answer in answers] == [200] * 6
    loads = [body["model_id"] for body in neuron.loads]
    # each comes up once, and one after the other
    assert sorted(loads) in (["m", "x", "y"], ["m", "y"])
    assert len(neuron.moves) == len(loads)


async def test_who_waits_for_room_in_vain_is_told_in_time(fake: Any, start: Any) -> None:
    neuron = fake(found=GPU)
    rules = {"min_residency_s": 3600, "max_wait_s": 0.2}
    pinned = [Model(id="m", harness="echo", vram_mb=20_000)]
    neuron.states["x"] = make_state("x", "loading")
    models = [*pinned, Model(id="x", harness="echo", vram_mb=20_000)]
    async with start(neuron, models=models, eviction=rules) as fleet:
        answer = await fleet.ask("m")
    assert error_of(answer) == (503, "insufficient_vram")
    assert "x comes or goes" in answer.json["error"]["message"]


@pytest.mark.slow
async def test_a_b_a_a_c_a_b_costs_at_most_three_swaps(fake: Any, start: Any) -> None:
    neuron = fake(found=GPU)
    rules = {"min_residency_s": 0.4, "max_wait_s": 5}
    async with start(neuron, models=MODELS, eviction=rules) as fleet:
        asked = []
        for model in "mxmmymx":
            asked.append(asyncio.create_task(fleet.ask(model)))
            await asyncio.sleep(0.02)
        answers = await asyncio.gather(*asked)
    assert [answer.status for answer in answers] == [200] * 7
    assert [body["model_id"] for body in neuron.loads] == ["m", "x", "y"]
    assert len(neuron.moves) == 2


async def test_a_neuron_says_how_much_is_needed(fake: Any, start: Any) -> None:
    neuron = fake(make_state("x"), found=GPU)

    def plan(body: dict[str, Any]) -> PlanAnswer:
        needs = DevicePlan(index=0, needed_mb=3_000, free_mb=None, total_mb=24_000)
        return PlanAnswer(model_id="m", fits=True, source="measured", devices=[needs])

    neuron.plan = plan
    models = [Model(id="m", harness="echo", vram_mb=9_000), MODELS[1]]
    async with start(neuron, models=models, eviction=AT_ONCE) as fleet:
        assert (await fleet.ask("m")).status == 200
    # it needs less than was declared, so that nobody had to go
    assert neuron.plans == [{"model_id": "m", "harness": "echo", "vram_mb": 9_000}]
    assert neuron.moves == []


async def test_where_a_neuron_says_never_another_is_asked(fake: Any, start: Any) -> None:
    first, second = fake(found=GPU), fake(make_state("x"), make_state("z"), found=GPU)
    first.plan = lambda body: PlanAnswer(
        model_id="m", fits=False, kind="tp_infeasible", reason="three ranks"
    )
    async with start(first, second, models=MODELS, eviction=AT_ONCE) as fleet:
        assert (await fleet.ask("m")).status == 200
    assert first.loads == []
    assert [body["model_id"] for body in second.loads] == ["m"]
    second.plan = first.plan
    async with start(first, models=MODELS, eviction=AT_ONCE) as fleet:
        answer = await fleet.ask("m")
    assert error_of(answer) == (404, "model_infeasible")
    assert "a: three ranks" in answer.json["error"]["message"]


async def test_what_is_pinned_while_its_work_ends_serves_on(fake: Any, start: Any) -> None:
    neuron, gate = fake(make_state("x"), found=GPU), asyncio.Event()
    whole = neuron.answer(0)
    neuron.answer = lambda n: (*whole[:2], [gate, *whole[2]])
    async with start(neuron, models=MODELS, eviction=AT_ONCE) as fleet:
        first = asyncio.create_task(fleet.ask("x"))
        await neuron.began.wait()
        second = asyncio.create_task(fleet.ask("m"))
        while ("a", "m") not in fleet.gateway.fleet.view().loads:
            await asyncio.sleep(0)
        fleet.gateway.fleet.note_pin(("a", "x"), pinned=True)
        gate.set()
        assert (await first).status == 200
        assert error_of(await second) == (404, "model_infeasible")
    assert neuron.moves == []
    assert list(neuron.states) == ["x"]


async def test_what_is_not_idle_any_more_when_its_turn_comes_stays(fake: Any, start: Any) -> None:
    neuron = fake(make_state("x"), make_state("y"))
    begun, go, done = asyncio.Event(), asyncio.Event(), neuron.move

    async def move(how: str, model_id: str) -> None:
        begun.set()
        await go.wait()
        await done(how, model_id)

    neuron.move = move
    idle = [Displace(node="a", model=name, model_id=name, how="unload") for name in "xy"]
    looks = iter([RuntimeError("a fault of ours")])

    def find() -> list[Displace]:
        for fault in looks:
            raise fault
        return list(idle)

    with structlog.testing.capture_logs() as said:
        async with start(neuron) as fleet, asyncio.timeout(5):
            running = asyncio.create_task(fleet.gateway._displacer.run_idle(find, 0.001))
            await begun.wait()
            idle.clear()
            go.set()
            while "x" in neuron.states or fleet.gateway.fleet.view().leaving:
                await asyncio.sleep(0)
            assert not running.done()
            running.cancel()
    assert neuron.moves == [("unload", "x")]
    assert [each["event"] for each in said].count("looking for idle models failed") == 1
