# SPDX-License-Identifier: GPL-3.0-or-later
"""GET /fleet/requests/{id}: why a request went where it went."""

import asyncio
from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.errors import LoadRefusedError
from cortex_core.node import Health
from cortex_core.testing import collect, make_device, make_discovery, make_state

ID = [(b"x-request-id", b"r1")]


async def story_of(fleet: Any, request_id: str = "r1") -> Any:
    return await fleet.get(f"/fleet/requests/{request_id}")


def steps_of(story: Any) -> list[tuple[str, str | None]]:
    return [(step["decision"], step["node"]) for step in story["steps"]]


async def test_a_served_request_tells_who_else_could_have_served_it(fake: Any, start: Any) -> None:
    async with start(fake(make_state("m")), fake(make_state("m")), fake()) as fleet:
        answer = await fleet.ask(headers=ID)
        story = await story_of(fleet)
    assert steps_of(story) == [("serve", "a")]
    assert story["steps"][0]["candidates"] == [
        {"node": "a", "says": "ready, 0 busy"},
        {"node": "b", "says": "ready, 0 busy"},
    ]
    assert (story["outcome"], story["status"], story["error_code"]) == ("answered", 200, None)
    assert (story["model"], story["served_model"], story["node"]) == ("m", "m", "a")
    assert (story["dialect"], story["stream"]) == ("openai_chat", False)
    assert answer.status == 200


async def test_a_load_tells_why_there_and_how_long_it_took(fake: Any, start: Any) -> None:
    small = fake(found=make_discovery(make_device(0, 1_000)))
    large = fake(found=make_discovery(make_device(0, 24_000)))
    declared = [Model(id="m", harness="vllm", min_device_vram_mb=20_000)]
    async with start(small, large, "http://127.0.0.1:9", models=declared) as fleet:
        await fleet.ask(headers=ID)
        story = await story_of(fleet)
    assert steps_of(story) == [("load", "b"), ("serve", "b")]
    said = {each["node"]: each["says"] for each in story["steps"][0]["candidates"]}
    assert said == {
        "a": "needs 1 device(s) of 20000 MiB, has 1000 MiB",
        "b": "has room",
        "c": "never answered",
    }
    assert 0 < story["load_wait_s"] <= story["duration_s"]


async def test_a_failed_load_and_a_refusal_tell_their_reasons(fake: Any, start: Any) -> None:
    neuron = fake()

    async def fail(body: Any) -> None:
        raise LoadRefusedError(model="m", load_kind="corrupt_weights", reason="r", suggestion="s")

    neuron.load = fail
    async with start(neuron, models=[Model(id="m", harness="echo")]) as fleet:
        answer = await fleet.ask(headers=ID)
        story = await story_of(fleet)
        await fleet.ask("nobody-has-it", headers=[(b"x-request-id", b"r2")])
        refused = await story_of(fleet, "r2")
    assert answer.status == 502
    assert [decision for decision, _ in steps_of(story)][:2] == ["load", "failed"]
    assert "corrupt_weights" in story["steps"][1]["reason"]
    assert (story["outcome"], story["error_code"], story["status"]) == (
        "refused",
        "load_failed",
        502,
    )
    assert steps_of(refused) == [("refuse", None)]
    assert refused["error_code"] == "model_not_found"
    (candidate,) = refused["steps"][0]["candidates"]
    assert candidate["says"] == "does not have it, and nobody declares it"


async def test_what_fails_elsewhere_is_told_step_by_step(fake: Any, start: Any) -> None:
    first, second = fake(make_state("m")), fake(make_state("m"))
    first.answer = lambda n: (503, [], [b"{}"])
    async with start(first, second) as fleet:
        await fleet.ask(headers=ID)
        story = await story_of(fleet)
    assert steps_of(story) == [("serve", "a"), ("elsewhere", "a"), ("serve", "b")]
    assert (story["outcome"], story["node"]) == ("answered", "b")


async def test_a_request_that_runs_is_in_the_fleet_and_one_whose_client_left_is_told_so(
    fake: Any, start: Any
) -> None:
    neuron = fake(make_state("m"))
    neuron.answer = lambda n: (200, [(b"content-type", b"text/event-stream")], [b": x\n\n", None])
    leave = asyncio.Event()
    async with start(neuron) as fleet:
        asked = asyncio.create_task(fleet.ask(headers=ID, stream=True, leave=leave))
        await neuron.began.wait()
        (running,) = (await fleet.get("/fleet"))["requests"]
        assert (running["request_id"], running["node"], running["step"]) == ("r1", "a", "serve")
        assert (await story_of(fleet))["outcome"] == "running"
        leave.set()
        await asked
        story = await story_of(fleet)
        assert (await fleet.get("/fleet"))["requests"] == []
    assert (story["outcome"], story["status"], story["error_code"]) == ("left", 200, None)


async def test_an_unknown_request_is_404_and_says_how_many_are_kept(start: Any) -> None:
    async with start() as fleet:
        answer = await collect(fleet.gateway.front, "GET", "/fleet/requests/nobody")
    assert (answer.status, answer.json["error"]["code"]) == (404, "request_not_found")
    assert "The last 1000 are" in answer.json["error"]["message"]


async def test_no_prompt_and_no_answer_is_in_a_story(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m"))
    neuron.health = Health(uptime_secs=1)
    neuron.answer = lambda n: (200, [], [b'{"choices":[{"message":{"content":"hush-answer"}}]}'])
    async with start(neuron) as fleet:
        await fleet.ask(headers=ID, messages=[{"role": "user", "content": "hush-prompt"}])
        answer = await collect(fleet.gateway.front, "GET", "/fleet/requests/r1")
    assert b"hush" not in answer.body


KEYED = [
    ("GET", "/fleet"),
    ("GET", "/fleet/"),
    ("GET", "/fleet/requests/x"),
    ("GET", "/fleet/nowhere"),
    ("POST", "/fleet/plan"),
    ("POST", "/fleet/models/unload"),
    ("POST", "/fleet/nodes/drain"),
]


@pytest.mark.parametrize(("method", "path"), KEYED)
async def test_the_operators_routes_have_a_key_of_their_own(
    start: Any, method: str, path: str
) -> None:
    async with start(fleet={"key": "operators"}) as fleet:
        front = fleet.gateway.front
        for fields in ([], [(b"x-api-key", b"guess")], [(b"authorization", b"Bearer guess")]):
            answer = await collect(front, method, path, headers=fields, body=b"{}")
            assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
        shown = [(b"authorization", b"Bearer operators")]
        assert (await collect(front, method, path, headers=shown, body=b"{}")).status != 401


async def test_clients_need_no_operators_key(fake: Any, start: Any) -> None:
    async with start(fake(make_state("m")), fleet={"key": "operators"}) as fleet:
        assert (await fleet.ask()).status == 200
        for path in ("/health", "/version", "/v1/models"):
            await fleet.get(path)
        assert (await collect(fleet.gateway.front, "GET", "/fleetish")).status == 404
