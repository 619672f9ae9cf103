# SPDX-License-Identifier: GPL-3.0-or-later
"""Idle engines are reloaded once after so many cycles, and nobody who asks for one meanwhile notices more than a wait."""

import asyncio
from typing import Any

import msgspec
import structlog

from cortex_core.catalogue import Catalogue
from cortex_core.errors import LoadFailedError
from cortex_core.node import Health, ModelActivity
from cortex_core.testing import make_state

AFTER = {"defrag_after_cycles": 4}


def due(neuron: Any, cycles: int = 4) -> Any:
    """A neuron whose count is at `cycles`, and starts again as a real one's does."""
    neuron.health = Health(uptime_secs=1.0, cycles=cycles)

    async def move(how: str, model_id: str) -> None:
        neuron.health = msgspec.structs.replace(neuron.health, cycles=0)

    neuron.move = move
    return neuron


async def test_each_idle_engine_is_reloaded_once_and_counted(fake: Any, start: Any) -> None:
    neuron = due(fake(make_state("m"), make_state("n"), make_state("asleep", "sleeping")))
    async with start(neuron, eviction=AFTER) as fleet:
        await fleet.gateway.recycler.recycle()
        await fleet.gateway.recycler.recycle()
        lines = await fleet.metrics()
    assert neuron.moves == [("reload", "m"), ("reload", "n")]
    assert 'cortex_defrags_total{model="m",node="a"} 1.0' in lines
    assert 'cortex_defrags_total{model="n",node="a"} 1.0' in lines


async def test_a_node_that_is_not_due_is_let_be(fake: Any, start: Any) -> None:
    neuron = due(fake(make_state("m")), cycles=3)
    async with start(neuron, eviction=AFTER) as fleet:
        await fleet.gateway.recycler.recycle()
    assert neuron.moves == []


async def test_who_works_is_let_be_and_has_its_turn_when_it_is_idle(fake: Any, start: Any) -> None:
    neuron = due(fake(make_state("m")))
    neuron.activities = [ModelActivity(id="m", status="loaded", running=1)]
    async with start(neuron, eviction=AFTER) as fleet:
        await fleet.gateway.recycler.recycle()
        assert neuron.moves == []
        neuron.activities = []
        await fleet.poll()
        await fleet.gateway.recycler.recycle()
    assert neuron.moves == [("reload", "m")]


async def test_what_gets_work_while_another_is_reloaded_is_let_be(fake: Any, start: Any) -> None:
    neuron = due(fake(make_state("m"), make_state("n")))
    restart = neuron.move

    async def move(how: str, model_id: str) -> None:
        neuron.activities = [ModelActivity(id="n", status="loaded", running=1)]
        await restart(how, model_id)

    neuron.move = move
    async with start(neuron, eviction=AFTER) as fleet:
        await fleet.gateway.recycler.recycle()
    assert neuron.moves == [("reload", "m")]


async def test_who_asks_for_it_meanwhile_waits_and_is_served(fake: Any, start: Any) -> None:
    neuron, begun, go = due(fake(make_state("m"))), asyncio.Event(), asyncio.Event()
    restart = neuron.move

    async def move(how: str, model_id: str) -> None:
        begun.set()
        await go.wait()
        await restart(how, model_id)

    neuron.move = move
    async with start(neuron, eviction=AFTER) as fleet:
        recycling = asyncio.create_task(fleet.gateway.recycler.recycle())
        await begun.wait()
        asking = asyncio.create_task(fleet.ask())
        while not (await fleet.get("/fleet"))["waiting"]:
            await asyncio.sleep(0)
        assert neuron.asked == []
        go.set()
        answer = await asking
        await recycling
    assert (answer.status, answer.header(b"x-cortex-decision")) == (200, b"wait")
    assert len(neuron.asked) == 1


async def test_a_reload_that_fails_is_not_tried_again_before_something_has_changed(
    fake: Any, start: Any
) -> None:
    neuron = due(fake(make_state("m"), make_state("n")))

    async def fail(how: str, model_id: str) -> None:
        raise LoadFailedError(model="m", node="a", load_kind="engine_start_failed", reason="no")

    neuron.move = fail
    async with start(neuron, eviction=AFTER) as fleet:
        await fleet.gateway.recycler.recycle()
        await fleet.gateway.recycler.recycle()
        assert neuron.moves == [("reload", "m")]
        neuron.health = Health(uptime_secs=1.0, cycles=5)
        await fleet.poll()
        await fleet.gateway.recycler.recycle()
        lines = await fleet.metrics()
    assert neuron.moves == [("reload", "m"), ("reload", "m")]
    assert not [line for line in lines if line.startswith("cortex_defrags_total{")]


async def test_a_node_that_leaves_while_another_is_seen_to_is_let_be(fake: Any, start: Any) -> None:
    first, second = due(fake(make_state("m"))), due(fake(make_state("n")))
    begun, go, restart = asyncio.Event(), asyncio.Event(), first.move

    async def move(how: str, model_id: str) -> None:
        begun.set()
        await go.wait()
        await restart(how, model_id)

    first.move = move
    async with start(first, second, eviction=AFTER) as fleet:
        recycling = asyncio.create_task(fleet.gateway.recycler.recycle())
        await begun.wait()
        await fleet.have(a=fleet.endpoint("a"))
        while len(fleet.gateway.fleet.view().nodes) > 1:
            await asyncio.sleep(0)
        go.set()
        await recycling
    assert (first.moves, second.moves) == ([("reload", "m")], [])


async def test_a_fault_of_ours_does_not_end_it(fake: Any, start: Any) -> None:
    neuron = due(fake(make_state("m")))
    with structlog.testing.capture_logs() as said:
        async with start(
            neuron, eviction=AFTER, poll={"interval_s": 0.01, "timeout_s": 2}
        ) as fleet:
            fleet.gateway.recycler.declare(None)
            async with asyncio.timeout(5):
                while not [each for each in said if each["log_level"] == "error"]:
                    await asyncio.sleep(0.005)
                fleet.gateway.recycler.declare(Catalogue())
                while not neuron.moves:
                    await asyncio.sleep(0.005)
    assert neuron.moves == [("reload", "m")]


async def test_it_looks_by_itself(fake: Any, start: Any) -> None:
    neuron = due(fake(make_state("m")))
    async with start(neuron, eviction=AFTER, poll={"interval_s": 0.01, "timeout_s": 2}):
        async with asyncio.timeout(5):
            while not neuron.moves:
                await asyncio.sleep(0.005)
    assert neuron.moves == [("reload", "m")]
