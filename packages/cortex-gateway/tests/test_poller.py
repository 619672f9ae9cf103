# SPDX-License-Identifier: GPL-3.0-or-later
"""What the poller asks, what it makes of the answers, and what it says."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from cortex_core.catalogue import Model
from cortex_core.node import Health
from cortex_core.testing import Scripted, collect, make_device, make_discovery, make_state, serving

JSON = [(b"content-type", b"application/json")]


Events = Callable[[], list[str]]


@pytest.fixture
def events() -> Iterator[Events]:
    """What was logged since it was last asked, debug lines left out."""
    with structlog.testing.capture_logs() as entries:

        def take() -> list[str]:
            taken = [entry["event"] for entry in entries if entry["log_level"] != "debug"]
            entries.clear()
            return taken

        yield take


async def test_the_first_look_is_over_before_the_gateway_is_there(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m"))
    async with start(neuron) as fleet:
        assert fleet.gateway.fleet.node("a").is_up
        assert sorted(neuron.polls) == ["/discovery", "/health", "/models"]


async def test_discovery_is_asked_once_and_again_after_a_restart(fake: Any, start: Any) -> None:
    neuron = fake(found=make_discovery(make_device()))
    neuron.health = Health(uptime_secs=50.0)
    async with start(neuron) as fleet:
        await fleet.poll()
        assert neuron.polls.count("/discovery") == 1
        neuron.health = Health(uptime_secs=0.5)
        neuron.found = make_discovery()
        await fleet.poll()
        await fleet.poll()
        await fleet.poll()
        assert neuron.polls.count("/discovery") == 2
        assert fleet.gateway.fleet.node("a").discovery == make_discovery()


async def test_a_node_is_lost_after_three_misses_and_back_after_one_answer(
    fake: Any, start: Any, events: Events
) -> None:
    neuron = fake(make_state("m"))
    async with start(neuron) as fleet:
        assert events() == ["node is up"]
        for _ in range(3):
            await fleet.poll()
        assert events() == []  # what changes nothing is silent
        neuron.down = True
        for _ in range(2):
            await fleet.poll()
        assert fleet.gateway.fleet.node("a").is_up
        assert events() == []
        for _ in range(3):
            await fleet.poll()
        assert events() == ["node lost"]
        assert (await fleet.get("/health"))["status"] == "degraded"
        assert (await fleet.get("/v1/models"))["data"] == []
        neuron.down = False
        await fleet.poll()
        assert events() == ["node is up"]
        assert (await fleet.get("/v1/models"))["data"][0]["loaded"]


async def test_a_node_that_is_not_there_is_said_once(start: Any, events: Events) -> None:
    async with start("http://127.0.0.1:9") as fleet:
        for _ in range(3):
            await fleet.poll()
        assert events() == ["node does not answer"]


async def test_only_the_models_decide_whether_a_node_is_up(start: Any) -> None:
    answers = {"/models": b'[{"id":"m","harness":"echo","status":"loaded","new":1}]'}
    upstream = Scripted(lambda n: (200, JSON, [answers.get(upstream.asked[n][1], b"no json")]))
    async with serving(upstream) as endpoint, start(endpoint) as fleet:
        node = fleet.gateway.fleet.node("a")
        assert (node.is_up, node.is_discovered, node.health) == (True, False, None)
        answers["/models"] = b"no json"
        for _ in range(3):
            await fleet.poll()
        assert not fleet.gateway.fleet.node("a").is_up


async def test_a_node_that_hangs_delays_no_other_and_the_start_not_for_long(
    fake: Any, start: Any
) -> None:
    hanging = Scripted(lambda n: (200, JSON, [None]))
    poll = {"interval_s": 3600, "timeout_s": 0.1}
    async with (
        asyncio.timeout(2),
        serving(hanging) as endpoint,
        start(endpoint, fake(make_state("m")), poll=poll) as fleet,
    ):
        assert not fleet.gateway.fleet.node("a").is_up
        assert (await fleet.ask()).status == 200


async def test_every_interval_is_a_look(fake: Any, start: Any) -> None:
    neuron = fake()
    async with start(neuron, poll={"interval_s": 0.01, "timeout_s": 1}) as fleet:
        neuron.states["m"] = make_state("m")
        async with asyncio.timeout(2):
            while not fleet.gateway.fleet.node("a").models:
                await asyncio.sleep(0)


async def reason_of(fleet: Any, model: str) -> str | None:
    entries = (await fleet.get("/v1/models"))["data"]
    found: str | None = next(each.get("reason") for each in entries if each["id"] == model)
    return found


@pytest.mark.parametrize(
    ("ours", "says"),
    [
        ("theirs", None),
        ("other", "it refuses our secret"),
        (None, "it wants a secret, and none is configured"),
    ],
)
async def test_a_wrong_secret_is_told_everywhere_and_said_once(
    fake: Any, start: Any, events: Events, ours: str | None, says: str | None
) -> None:
    neuron = fake(make_state("m"))
    neuron.secret = b"theirs"
    declared = [Model(id="m", harness="echo")]
    async with start(neuron, models=declared, secrets={"a": ours}) as fleet:
        for _ in range(3):
            await fleet.poll()
        assert events() == ["node is up" if says is None else "node cannot be used"]
        (node,) = (await fleet.get("/fleet"))["nodes"]
        assert (node["up"], node["problem"]) == (says is None, says)
        assert await reason_of(fleet, "m") == (says and f"a: {says}")
        answer = await fleet.ask()
        assert answer.status == (200 if says is None else 503)
        if says:
            assert answer.json["error"]["code"] == "no_healthy_node"
            assert says in answer.json["error"]["message"]
        everything = (await collect(fleet.gateway.front, "GET", "/fleet")).body
        assert b"theirs" not in everything


async def test_a_secret_that_changes_under_a_request_is_no_fault_of_the_client_s(
    fake: Any, start: Any
) -> None:
    neuron = fake(make_state("m"))
    async with start(neuron) as fleet:
        neuron.secret = b"new"
        answer = await fleet.ask()
    assert (answer.status, answer.json["error"]["code"]) == (503, "no_healthy_node")
    assert answer.header(b"retry-after")


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b"<html>", "no neuron answers there: GET /models is 404"),
        (307, b"", "no neuron answers there: GET /models is 307"),
        (200, b'{"object":"list","data":[]}', "no neuron answers there: Expected `array`"),
        (200, b"<html>", "no neuron answers there: JSON is malformed"),
    ],
)
async def test_a_wrong_endpoint_is_told_as_such(
    start: Any, events: Events, status: int, body: bytes, says: str
) -> None:
    upstream = Scripted(lambda n: (status, JSON, [body]))
    async with serving(upstream) as endpoint, start(endpoint) as fleet:
        await fleet.poll()
        (node,) = (await fleet.get("/fleet"))["nodes"]
        assert says in node["problem"]
        assert events() == ["node cannot be used"]


async def test_two_names_for_one_neuron_count_once(fake: Any, start: Any, events: Events) -> None:
    neuron = fake(make_state("m"))
    neuron.health = Health(uptime_secs=1, instance="one")
    async with serving(neuron) as endpoint, start(endpoint, endpoint) as fleet:
        for _ in range(2):
            await fleet.poll()
        first, second = (await fleet.get("/fleet"))["nodes"]
        assert (first["up"], second["up"]) == (True, False)
        assert second["problem"] == "it is the neuron that 'a' names already"
        assert [
            each["node"] for each in (await fleet.get("/v1/models"))["data"][0]["locations"]
        ] == ["a"]
        said = events()
        assert said.count("node is up") == 1 + said.count("node lost")
        assert "node cannot be used" in said or "node lost" in said
        neuron.health = Health(uptime_secs=0.1, instance="two")  # it restarts
        for name in ("b", "a", "b"):
            await fleet.gateway.poller.poll(name)
        assert [node["up"] for node in (await fleet.get("/fleet"))["nodes"]] == [True, False]
        assert events() == []


async def test_an_endpoint_that_leads_to_another_neuron_now_is_looked_at_anew(
    fake: Any, start: Any
) -> None:
    neuron = fake(found=make_discovery(make_device(0, 24_000)))
    neuron.health = Health(uptime_secs=5, instance="one")
    async with start(neuron) as fleet:
        neuron.found = make_discovery(make_device(0, 48_000))
        neuron.health = Health(uptime_secs=900, instance="other")  # up for longer: no restart
        await fleet.poll()
        (node,) = (await fleet.get("/fleet"))["nodes"]
    assert node["devices"][0]["vram_total_mb"] == 48_000


async def test_an_older_neuron_is_used_with_what_it_tells(start: Any, events: Events) -> None:
    answers = {
        "/models": b'[{"id":"m","harness":"echo","status":"loaded"}]',
        "/health": b'{"uptime_secs":1}',
        "/discovery": b'{"hostname":"h","os":"o","kernel":"k","harnesses":["echo"],"wire":0}',
    }
    upstream = Scripted(lambda n: (200, JSON, [answers.get(upstream.asked[n][1], b"{}")]))
    async with serving(upstream) as endpoint, start(endpoint) as fleet:
        (node,) = (await fleet.get("/fleet"))["nodes"]
        assert (node["up"], node["wire"], node["problem"]) == (True, 0, None)
        assert (await fleet.ask()).status == 200
        assert "node speaks another version" in events()


async def test_what_a_newer_neuron_says_beyond_us_is_passed_over(start: Any) -> None:
    answers = {
        "/models": b'[{"id":"m","harness":"echo","status":"loaded","mood":{"is":["new"]}},'
        b'{"id":"n","harness":"quantum","status":"entangled"}]',
        "/health": b'{"uptime_secs":1,"mood":1,"models":[{"id":"n","status":"entangled","x":1}]}',
        "/discovery": b'{"hostname":"h","os":"o","kernel":"k","harnesses":["echo"],"wire":2,"mood":[]}',
    }
    upstream = Scripted(lambda n: (200, JSON, [answers.get(upstream.asked[n][1], b"{}")]))
    async with serving(upstream) as endpoint, start(endpoint) as fleet:
        assert (await fleet.ask("m")).status == 200
        refused = await fleet.ask("n")  # a status word that is not known is not routable
        (node,) = (await fleet.get("/fleet"))["nodes"]
    assert refused.status >= 400
    assert [model["status"] for model in node["models"]] == ["loaded", "entangled"]


async def test_a_node_that_is_renamed_while_it_works_serves_at_once_by_its_new_name(
    fake: Any, start: Any
) -> None:
    neuron, gate = fake(make_state("m")), asyncio.Event()
    neuron.health = Health(uptime_secs=1, instance="one")
    status, headers, parts = neuron.answer(0)
    neuron.answer = lambda n: (status, headers, parts if n else [gate, *parts])
    async with start(neuron) as fleet:
        asked = asyncio.create_task(fleet.ask())
        await neuron.began.wait()
        await fleet.have(b=fleet.endpoint("a"))
        for _ in range(2):
            await fleet.poll()
            answer = await fleet.ask()
            assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"b")
        gate.set()
        assert (await asked).header(b"x-cortex-node") == b"a"


class Slow:
    """A fake neuron that says nothing for as long as `gate` is closed."""

    def __init__(self, neuron: Any) -> None:
        self.neuron = neuron
        self.gate = asyncio.Event()
        self.gate.set()
        self.began = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self.gate.is_set():
            self.began.set()
        await self.gate.wait()
        await self.neuron(scope, receive, send)


@pytest.mark.parametrize("answers", [True, False])
async def test_what_the_machine_before_says_does_not_count_for_the_one_there_now(
    fake: Any, start: Any, answers: bool
) -> None:
    before = Slow(fake(found=make_discovery(make_device(0, 24_000))))
    now = fake(found=make_discovery(make_device(0, 48_000)))
    now.health = Health(uptime_secs=900)  # as if the same had gone on
    before.neuron.down = True
    async with start(before, now) as fleet:
        before.gate.clear()
        looking = asyncio.create_task(fleet.gateway.poller.poll("a"))
        await before.began.wait()
        moving = asyncio.create_task(fleet.have(a=fleet.endpoint("b")))
        while fleet.endpoint("a") != fleet.endpoint("b"):
            await asyncio.sleep(0)
        before.neuron.down = not answers
        before.gate.set()
        await looking
        assert (fleet.gateway.fleet.node("a").problem, fleet.gateway.fleet.node("a").misses) == (
            None,
            0,
        )
        await moving
        (node,) = (each for each in (await fleet.get("/fleet"))["nodes"] if each["name"] == "a")
    assert node["devices"][0]["vram_total_mb"] == 48_000


async def test_of_a_node_that_has_left_no_look_keeps_anything(fake: Any, start: Any) -> None:
    async with start(fake(), fake()) as fleet, asyncio.timeout(5):
        await fleet.have(a=fleet.endpoint("a"))
        while fleet.gateway._seeing_off:
            await asyncio.sleep(0)
        await fleet.gateway.poller.poll("b")
        assert list(fleet.gateway.poller._locks) == ["a"]
