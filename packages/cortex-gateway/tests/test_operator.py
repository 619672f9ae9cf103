# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators order is done, told place by place, and refused with a reason."""

import asyncio
import json
from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.errors import LoadFailedError
from cortex_core.node import Activation, Health
from cortex_core.testing import Collected, collect, make_device, make_discovery, make_state

GPU = make_discovery(make_device(0, 24_000), harnesses=("echo",))
MODELS = [Model(id=name, harness="echo", vram_mb=20_000) for name in "mx"]


async def order(fleet: Any, path: str, **body: Any) -> Collected:
    front = fleet.gateway.front
    return await collect(front, "POST", f"/fleet/{path}", body=json.dumps(body).encode())


async def done(fleet: Any, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = await order(fleet, path, **body)
    assert answer.status == 200, answer.body
    told: list[dict[str, Any]] = answer.json["done"]
    return told


def at(status: str, model: str | None = "m", node: str | None = "a", already: bool = False) -> Any:
    return [{"status": status, "model_id": model, "node": node, "already": already}]


async def test_a_model_is_loaded_where_it_is_best_or_where_it_is_said(
    fake: Any, start: Any
) -> None:
    first, second = fake(found=GPU), fake(make_state("z"), found=GPU)
    async with start(first, second, models=MODELS, aliases={"alias": "m"}) as fleet:
        assert await done(fleet, "models/load", model_id="alias") == at("loaded")
        assert await done(fleet, "models/load", model_id="m") == at("loaded", already=True)
        assert await done(fleet, "models/load", model_id="m", node="b") == at("loaded", node="b")
    assert [len(neuron.loads) for neuron in (first, second)] == [1, 1]


async def test_a_load_has_others_make_room_and_says_who_may_not(fake: Any, start: Any) -> None:
    neuron = fake(make_state("x"), found=GPU)
    async with start(neuron, models=MODELS) as fleet:
        assert await done(fleet, "models/pin", model_id="x", node="a") == at("pinned", "x")
        answer = await order(fleet, "models/load", model_id="m")
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_infeasible")
        assert "pinned or undeclared there: x" in answer.json["error"]["message"]
        assert await done(fleet, "models/unpin", model_id="x", node="a") == at("unpinned", "x")
        with fleet.gateway.fleet.serving("a", "x"):
            answer = await order(fleet, "models/load", model_id="m")
            assert (answer.status, answer.json["error"]["code"]) == (503, "insufficient_vram")
            assert "x works" in answer.json["error"]["message"]
        assert await done(fleet, "models/load", model_id="m") == at("loaded")
    assert neuron.moves == [("unload", "x")]


async def test_what_is_pinned_is_declared_or_somewhere_by_any_of_its_names(
    fake: Any, start: Any
) -> None:
    neuron = fake(make_state("hub:org/y"), found=GPU)
    neuron.health = Health(uptime_secs=1.0, activation=Activation(pending=["soon"]))
    async with start(neuron, models=MODELS, aliases={"alias": "m"}) as fleet:
        for name, model in {"alias": "m", "org/y": "hub:org/y", "soon": "soon"}.items():
            told = await done(fleet, "models/pin", model_id=name)
            assert told == at("pinned", model, None)
        told = await done(fleet, "models/unpin", model_id="org/y")
        assert told == at("unpinned", "hub:org/y", None)
        pins = {model for _, model in fleet.gateway.fleet.view().pins}
        assert pins == {"m", "soon"}
        # whatever left meanwhile
        told = await done(fleet, "models/unpin", model_id="nobody")
        assert told == at("unpinned", "nobody", None)


async def test_a_model_goes_to_sleep_wakes_and_goes(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m", can_sleep=True), make_state("x"), found=make_discovery())
    async with start(neuron) as fleet:
        assert await done(fleet, "models/sleep", model_id="m") == at("sleeping")
        assert await done(fleet, "models/sleep", model_id="m") == at("sleeping", already=True)
        assert await done(fleet, "models/wake", model_id="m") == at("loaded")
        assert await done(fleet, "models/wake", model_id="m") == at("loaded", already=True)
        answer = await order(fleet, "models/sleep", model_id="x")
        assert (answer.status, answer.json["error"]["code"]) == (409, "cannot_sleep")
        assert await done(fleet, "models/unload", model_id="m", node="a") == at("unloaded")
        answer = await order(fleet, "models/unload", model_id="m")
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    assert neuron.moves == [("sleep", "m"), ("wake", "m"), ("unload", "m")]


async def test_nothing_to_unload_of_a_declared_model_is_no_error(fake: Any, start: Any) -> None:
    async with start(fake(), models=MODELS) as fleet:
        assert await done(fleet, "models/unload", model_id="m") == []


async def test_what_comes_up_since_the_last_look_is_unloaded(fake: Any, start: Any) -> None:
    neuron, begun, gone = fake(found=GPU), asyncio.Event(), asyncio.Event()
    move = neuron.move

    async def load(body: dict[str, Any]) -> None:
        neuron.states["m"] = make_state("m", "loading")
        begun.set()
        await gone.wait()
        raise LoadFailedError(model="m", node="a", load_kind="unloaded", reason="it was unloaded")

    async def unload(how: str, model_id: str) -> None:
        await move(how, model_id)
        gone.set()

    neuron.load, neuron.move = load, unload
    async with start(neuron, models=MODELS) as fleet:
        asked = asyncio.create_task(fleet.ask("m"))
        await begun.wait()
        answer = await order(fleet, "models/sleep", model_id="m")
        assert (answer.status, answer.json["error"]["code"]) == (503, "model_loading")
        assert await done(fleet, "models/unload", model_id="m") == at("unloaded")
        assert (await asked).status == 502
    assert neuron.moves == [("unload", "m")]


@pytest.mark.parametrize("verb", ["unload", "sleep", "wake"])
async def test_what_has_yet_to_come_up_is_told_as_that(fake: Any, start: Any, verb: str) -> None:
    neuron, begun, go = fake(found=GPU), asyncio.Event(), asyncio.Event()
    neuron.health = Health(uptime_secs=1.0, activation=Activation(pending=["soon"]))
    load = neuron.load

    async def wait(body: dict[str, Any]) -> None:
        begun.set()
        await go.wait()
        await load(body)

    neuron.load = wait
    async with start(neuron, fake(), models=MODELS) as fleet:
        asked = asyncio.create_task(fleet.ask("m"))
        await begun.wait()
        for name in ("m", "soon"):
            answer = await order(fleet, f"models/{verb}", model_id=name)
            assert (answer.status, answer.json["error"]["code"]) == (503, "model_loading")
            assert "is loading on a" in answer.json["error"]["message"]
        assert await done(fleet, f"models/{verb}", model_id="m", node="b") == []
        go.set()
        assert (await asked).status == 200
    assert neuron.moves == []


async def test_work_ends_before_a_model_is_unloaded_by_hand(fake: Any, start: Any) -> None:
    neuron, gate = fake(make_state("m")), asyncio.Event()
    whole = neuron.answer(0)
    neuron.answer = lambda n: (*whole[:2], [gate, *whole[2]])
    async with start(neuron) as fleet:
        asked = asyncio.create_task(fleet.ask("m"))
        await neuron.began.wait()
        unload = asyncio.create_task(order(fleet, "models/unload", model_id="m"))
        while not fleet.gateway.fleet.view().leaving:
            await asyncio.sleep(0)
        assert neuron.moves == []
        gate.set()
        assert (await asked).status == 200
        assert (await unload).status == 200
    assert neuron.moves == [("unload", "m")]


async def test_a_drained_node_gets_nothing_new(fake: Any, start: Any) -> None:
    first, second = fake(make_state("m")), fake(make_state("m"))
    async with start(first, second) as fleet:
        assert await done(fleet, "nodes/drain", node="a") == at("drained", None)
        answers = [await fleet.ask("m") for _ in range(4)]
        assert {answer.header(b"x-cortex-node") for answer in answers} == {b"b"}
        assert await done(fleet, "nodes/undrain", node="a") == at("undrained", None)
        answers = [await fleet.ask("m") for _ in range(4)]
        assert {answer.header(b"x-cortex-node") for answer in answers} == {b"a"}


async def test_a_plan_tells_what_each_node_would_do(fake: Any, start: Any) -> None:
    failed = make_state("m", "failed", load_s=7.0)  # what it took before
    first = fake(make_state("x", can_sleep=True, sleep_s=1.5), failed, found=GPU)
    second = fake(found=make_discovery())
    async with start(first, second, models=MODELS) as fleet:
        answer = await order(fleet, "plan", model_id="m")
        assert answer.status == 200
        told = answer.json
        answer = await order(fleet, "plan", model_id="nobody")
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    assert (told["model_id"], told["decision"], told["chosen"]) == ("m", "load", "a")
    assert told["nodes"] == [
        {
            "node": "a",
            "fits": True,
            "decision": "load",
            "reason": "x is put to sleep for it",
            "needed_mb": {"0": 20_000},
            "would_displace": {"x": "sleep"},
            "expected_s": 8.5,
        },
        {
            "node": "b",
            "fits": False,
            "decision": "refuse",
            "reason": "b: needs 1 device(s) of 20000 MiB, has no devices",
            "needed_mb": {},
            "would_displace": {},
            "expected_s": None,
        },
    ]
    assert (first.moves, first.loads, second.loads) == ([], [], [])


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("models/load", {"model_id": "nobody"}, 404, "model_not_found"),
        ("models/load", {"model_id": "m", "node": "z"}, 400, "invalid_request_body"),
        ("models/load", {"model": "m"}, 400, "invalid_request_body"),
        ("models/pin", {"model_id": "m", "node": "z"}, 400, "invalid_request_body"),
        ("models/pin", {"model_id": "nobody"}, 404, "model_not_found"),
        ("models/pin", {"model_id": "nobody", "node": "a"}, 404, "model_not_found"),
        ("models/fly", {"model_id": "m"}, 404, "route_not_found"),
        ("nodes/drain", {"node": "z"}, 400, "invalid_request_body"),
        ("nodes/fly", {"node": "a"}, 404, "route_not_found"),
    ],
)
async def test_what_an_operator_gets_wrong_is_said(
    fake: Any, start: Any, path: str, body: dict[str, str], status: int, code: str
) -> None:
    async with start(fake(), models=MODELS) as fleet:
        answer = await order(fleet, path, **body)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)


@pytest.mark.slow
async def test_what_nobody_asks_for_goes_one_rung_down_after_the_other(
    fake: Any, start: Any
) -> None:
    neuron = fake(make_state("m", can_sleep=True), make_state("x"), found=GPU)
    async with start(neuron, models=MODELS, eviction={"idle_ttl_s": 0.2}) as fleet:
        await done(fleet, "models/pin", model_id="x")
        told = 'cortex_evictions_total{model="m",node="a"} 2.0'
        while told not in await fleet.metrics():
            await asyncio.sleep(0.01)
    assert neuron.moves == [("sleep", "m"), ("unload", "m")]


async def test_a_node_that_leaves_while_another_unloads_is_passed_over(
    fake: Any, start: Any
) -> None:
    first, second = fake(make_state("m")), fake(make_state("m"))
    begun, go, unload = asyncio.Event(), asyncio.Event(), first.move

    async def move(how: str, model_id: str) -> None:
        begun.set()
        await go.wait()
        await unload(how, model_id)

    first.move = move
    async with start(first, second) as fleet:
        asked = asyncio.create_task(done(fleet, "models/unload", model_id="m"))
        await begun.wait()
        await fleet.have(a=fleet.endpoint("a"))
        while len(fleet.gateway.fleet.view().nodes) > 1:
            await asyncio.sleep(0)
        go.set()
        assert await asked == at("unloaded")
    assert second.moves == []
