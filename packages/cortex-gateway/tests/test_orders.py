# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of an order whose answer is lost: the node is asked what it has."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from cortex_core.catalogue import Model
from cortex_core.control import MoveRequest
from cortex_core.errors import NoHealthyNodeError, ShuttingDownError
from cortex_core.http.exchange import Message, Receive, Scope, Send
from cortex_core.testing import make_device, make_discovery, make_state, read_body
from cortex_gateway.orders import Orders

ECHO = [Model(id="m", harness="echo")]
QUICK = {"poll": {"interval_s": 0.01, "timeout_s": 2}}
GPU = make_discovery(make_device(0, 24_000), harnesses=("echo",))
PAGE = [(b"content-type", b"text/html")]


class Between:
    """What is between gateway and neuron: orders are answered by a proxy's page, before or after they are carried out.

    Attributes:
        is_heard: the neuron hears of them.
        hangs: nothing is answered at all.
        is_late: the neuron hears of them when it has been looked at some times after the answer.
        orders: how many there were.
    """

    def __init__(
        self, neuron: Any, *, is_heard: bool, hangs: bool = False, is_late: bool = False
    ) -> None:
        self.neuron = neuron
        self.is_heard = is_heard
        self.hangs = hangs
        self.is_late = is_late
        self.orders = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/models/"):
            await self.neuron(scope, receive, send)
            return
        self.orders += 1

        async def lose(message: Any) -> None:
            pass

        body = await read_body(receive)

        async def again() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        if self.is_heard and not self.is_late:
            await self.neuron(scope, again, lose)
        if self.hangs:
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 502, "headers": PAGE})
        await send({"type": "http.response.body", "body": b"<html>", "more_body": False})
        polls = len(self.neuron.polls)
        while self.is_late and len(self.neuron.polls) < polls + 20:
            await asyncio.sleep(0.001)
        if self.is_late:
            await self.neuron(scope, again, lose)


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


@pytest.fixture(name="between")
def _between(start: Any) -> Any:
    """A gateway before neurons, the first of which is behind something."""
    from contextlib import asynccontextmanager

    from cortex_core.testing import serving

    @asynccontextmanager
    async def make(way: Between, *others: Any, **config: Any) -> Any:
        async with serving(way) as endpoint, start(endpoint, *others, **config) as fleet:
            yield fleet

    return make


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_load_that_was_done_counts_whatever_came_of_its_answer(
    fake: Any, between: Any, hangs: bool
) -> None:
    neuron, other = fake(), fake()
    way = Between(neuron, is_heard=True, hangs=hangs)
    async with between(way, other, models=ECHO, **QUICK) as fleet:
        answer = await fleet.ask()
    assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"a")
    assert (way.orders, len(neuron.loads), other.loads) == (1, 1, [])


async def test_a_load_that_is_heard_of_after_its_answer_was_lost_is_asked_of_no_other_node(
    fake: Any, between: Any
) -> None:
    neuron, other = fake(), fake()
    way = Between(neuron, is_heard=True, is_late=True)
    async with between(way, other, models=ECHO, **QUICK) as fleet:
        answer = await fleet.ask()
    assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"a")
    assert (way.orders, len(neuron.loads), other.loads) == (1, 1, [])


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_load_that_nobody_heard_of_is_asked_of_another_node(
    fake: Any, between: Any, hangs: bool
) -> None:
    neuron, other = fake(), fake()
    way = Between(neuron, is_heard=False, hangs=hangs)
    async with between(way, other, models=ECHO, **QUICK) as fleet:
        answers = await asyncio.gather(*(fleet.ask() for _ in range(5)))
        told = await fleet.get("/fleet")
    assert {(a.status, a.header(b"x-cortex-node")) for a in answers} == {(200, b"b")}
    assert (way.orders, neuron.loads, len(other.loads)) == (1, [], 1)
    assert told["loads"] == []


async def test_where_no_other_node_can_have_it_the_loss_is_told(fake: Any, between: Any) -> None:
    async with between(Between(fake(), is_heard=False), models=ECHO, **QUICK) as fleet:
        answer = await fleet.ask()
    assert code_of(answer) == (503, "no_healthy_node")
    assert answer.header(b"retry-after") is not None
    assert "a was lost during the load" in answer.json["error"]["message"]


async def test_a_load_does_not_go_round_the_fleet(fake: Any, start: Any) -> None:
    """It may be what takes machines down."""

    async def stop(body: dict[str, Any]) -> None:
        raise ShuttingDownError(daemon="neuron")

    neurons = [fake() for _ in range(4)]
    for neuron in neurons:
        neuron.load = stop
    async with start(*neurons, models=ECHO) as fleet:
        answer = await fleet.ask()
    assert code_of(answer) == (503, "no_healthy_node")
    assert [len(neuron.loads) for neuron in neurons] == [1, 1, 1, 0]


async def test_a_load_that_goes_on_after_its_answer_was_lost_is_waited_for(
    fake: Any, between: Any
) -> None:
    neuron, other = fake(), fake()
    way = Between(neuron, is_heard=True)

    async def begin(body: dict[str, Any]) -> None:
        neuron.states["m"] = make_state("m", "loading")

    neuron.load = begin
    async with between(way, other, models=ECHO, **QUICK) as fleet:
        asking = asyncio.create_task(fleet.ask())
        while "m" not in neuron.states:
            await asyncio.sleep(0.001)
        polls = len(neuron.polls)
        while len(neuron.polls) < polls + 20:
            await asyncio.sleep(0.001)
        assert not asking.done()
        neuron.states["m"] = make_state("m")
        answer = await asking
    assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"a")
    assert (len(neuron.loads), other.loads) == (1, [])


@pytest.mark.parametrize("is_heard", [True, False])
async def test_room_that_was_made_is_used_and_else_made_elsewhere(
    fake: Any, between: Any, is_heard: bool
) -> None:
    neuron = fake(make_state("x"), found=GPU)
    other = fake(make_state("y"), found=GPU)

    class Way(Between):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            spoils = scope.get("path") == "/models/unload"
            await (super().__call__ if spoils else neuron)(scope, receive, send)

    models = [Model(id=name, harness="echo", vram_mb=20_000) for name in "mxy"]
    rules = {"min_residency_s": 0}
    async with between(
        Way(neuron, is_heard=is_heard), other, models=models, eviction=rules, **QUICK
    ) as fleet:
        answer = await fleet.ask()
    assert answer.status == 200
    node = neuron if is_heard else other
    assert list(node.states) == ["m"]
    assert list((other if is_heard else neuron).states) == ["y" if is_heard else "x"]


async def test_a_model_that_is_to_sleep_sleeps_when_it_says_how_long_that_took(
    fake: Any, start: Any
) -> None:
    neuron = fake(make_state("m", can_sleep=True))
    gate = asyncio.Event()

    async def doze(how: str, model_id: str) -> None:
        neuron.states["m"] = make_state("m", "sleeping", can_sleep=True)
        await gate.wait()

    neuron.move = doze
    async with start(neuron, **QUICK) as fleet:
        gateway = fleet.gateway
        clients = gateway._roster.clients
        orders = Orders(gateway.fleet, clients, gateway.poller)
        giving = asyncio.create_task(orders.give(("a", "m"), "sleep", MoveRequest(model_id="m")))
        while not neuron.moves:
            await asyncio.sleep(0.001)
        polls = len(neuron.polls)
        while len(neuron.polls) < polls + 20:
            await asyncio.sleep(0.001)
        assert not giving.done()
        neuron.states["m"] = msgspec.structs.replace(neuron.states["m"], sleep_s=1.5)
        assert (await giving).status == "sleeping"


async def test_a_reload_counts_where_the_model_was_loaded_anew(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m", load_s=3.0))

    async def stay(how: str, model_id: str) -> None:
        await asyncio.Event().wait()

    neuron.move = stay
    async with start(neuron, **QUICK) as fleet:
        gateway = fleet.gateway
        orders = Orders(gateway.fleet, gateway._roster.clients, gateway.poller)
        order = MoveRequest(model_id="m")
        with pytest.raises(NoHealthyNodeError):
            await orders.give(("a", "m"), "reload", order)

        async def anew(how: str, model_id: str) -> None:
            neuron.states["m"] = make_state("m", load_s=4.0)
            await asyncio.Event().wait()

        neuron.move = anew
        assert (await orders.give(("a", "m"), "reload", order)).status == "loaded"


async def test_a_node_that_goes_down_is_waited_for_no_longer(fake: Any, start: Any) -> None:
    neuron = fake(make_state("m"))

    async def hang(how: str, model_id: str) -> None:
        neuron.states["m"] = make_state("m", "unloading")
        neuron.down = True
        await asyncio.Event().wait()

    neuron.move = hang
    async with start(neuron, **QUICK) as fleet:
        # nobody's flight, which would be told: an operator has it moved
        body = json.dumps({"model_id": "m"}).encode()
        answer = await fleet.ask(path="/fleet/models/unload", body=body)
    assert code_of(answer) == (503, "no_healthy_node")
