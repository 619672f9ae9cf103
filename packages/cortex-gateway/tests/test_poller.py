# SPDX-License-Identifier: GPL-3.0-or-later
"""What the poller asks, what it makes of the answers, and what it says."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from cortex_core.node import Health
from cortex_core.testing import Scripted, make_device, make_discovery, make_state, serving

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
