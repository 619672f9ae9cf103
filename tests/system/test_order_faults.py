# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes fail while models come up, go, and wait for room: held clients are served elsewhere, or told in time."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from fault_proxy import HANG, NOISE, NONSENSE, PAGE, Fault, FaultProxy
from five_nodes import FAULTY, NAMES, TEXT, Five, Outcome, heal, kill, refuse, stop

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

# A device of 4096 MiB, which echo engines only pretend to use: each has room for one model of 3000.
NEURON = (
    '[[harnesses]]\nname = "vllm"\n[[harnesses]]\nname = "echo"\n'
    '[harness.vllm]\nwarm_spare = false\nplatform = "cpu"\ncpu_budget_mb = 4096\n'
)
CONFIG = "[eviction]\nmin_residency_s = 0\nmax_wait_s = 10\n[loading]\ncommit_after_s = 0.3\nkeepalive_s = 0.2\n"
OTHER = "d"  # where else the models may be
LARGE_MB, SMALL_MB = 3000, 1

UNHEARD = Fault(hangs=True, is_heard=False)
CUT = Fault(says=b"", is_heard=False)
CUT_EARLY = Fault(says=b"", is_early=True)
PAGE_EARLY = Fault(says=PAGE, is_early=True)
HALF = Fault(cut_after=2)
SLOW = Fault(delay_s=0.3)  # far less than a node may be silent about an order
# What spoils an order that moves a model, and the node that it is done on then.
SPOILT = (
    ("hangs", HANG, FAULTY),
    ("unheard", UNHEARD, OTHER),
    ("cut", CUT, OTHER),
    ("cut-early", CUT_EARLY, FAULTY),
    ("page-early", PAGE_EARLY, FAULTY),
    ("noise", Fault(says=NOISE), FAULTY),
    ("half", HALF, FAULTY),
    ("slow", SLOW, FAULTY),
)


class Order(NamedTuple):
    """What becomes of one kind of order, and which node serves then."""

    verb: str
    name: str
    fault: Fault
    node: str

    @property
    def model(self) -> str:
        slow = {"load": "?load_s=0.5", "wake": "?wake_s=0.5"}.get(self.verb, "")
        return f"echo/{self.verb}-{self.name}{slow}"


ORDERS = [
    *(Order(verb, *spoilt) for verb in ("load", "wake") for spoilt in SPOILT),
    Order("plan", "hangs", HANG, FAULTY),
    Order("plan", "cut", CUT, FAULTY),
    Order("plan", "nonsense", Fault(says=NONSENSE), FAULTY),
    Order("plan", "half", HALF, FAULTY),
    Order("plan", "slow", SLOW, FAULTY),
]
# What has the room on each of the two nodes, and what wants it.
VICTIMS = {"sleep": "echo/{}-sleeps", "unload": "echo/{}-stays?can_sleep=false"}
WANTS = "echo/wants"
# What is under way when a whole node fails.
COMES = "echo/comes?load_s=2"
WAKES = "echo/wakes?wake_s=2"
DOZES = {node: f"echo/{node}-dozes?sleep_s={s}" for node, s in ((FAULTY, 4), (OTHER, 0))}
PLANS = "echo/plans"
QUEUES = "echo/queues"


def entry(model: str, nodes: str, vram_mb: int | None = None) -> str:
    size = f"vram_mb = {vram_mb}\n" if vram_mb else ""
    pins = json.dumps(list(nodes))
    return f'[[models]]\nid = "{model}"\nharness = "echo"\npinned_on = {pins}\n{size}'


BOTH = FAULTY + OTHER
CATALOGUE = "".join(
    [
        *(entry(o.model, BOTH, SMALL_MB if o.verb == "plan" else None) for o in ORDERS),
        *(entry(model, BOTH) for model in (COMES, WAKES)),
        entry(PLANS, BOTH, SMALL_MB),
        entry("echo/elsewhere", "e"),
    ]
)
# Those that make room may not be pinned, so that they are declared by their size alone.
CATALOGUE += "".join(
    f'[[models]]\nid = "{model}"\nharness = "echo"\nvram_mb = {LARGE_MB}\n'
    for model in (
        *(victim.format(node) for victim in VICTIMS.values() for node in BOTH),
        *DOZES.values(),
        WANTS,
        QUEUES,
    )
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def five(open_fleet: Any) -> AsyncIterator[Five]:
    async with open_fleet() as fleet:
        neurons = await asyncio.gather(*(fleet.neuron(name, NEURON) for name in NAMES))
        ways = [FaultProxy(neuron.endpoint) for neuron in neurons]
        try:
            for way in ways:
                await way.listen()
            gateway = await fleet.gateway(
                *(way.endpoint for way in ways),
                models=CATALOGUE,
                config=CONFIG,
            )
            made = Five(fleet, gateway, neurons, ways)
            # nothing of these tests goes anywhere but to two of the nodes
            await asyncio.gather(*(order(made, "nodes/drain", node=node) for node in "ab"))
            await order(made, "models/load", model_id="echo/elsewhere")
            await order(made, "nodes/drain", node="e")
            # what both of them may have is tried on the one first
            for model in (*(each.model for each in ORDERS), WANTS):
                await order(made, "models/pin", model_id=model, node=FAULTY)
            yield made
        finally:
            for way in ways:
                await way.close()


async def order(five: Five, path: str, **body: str) -> None:
    status, _, raw = await five.gateway.post(f"/fleet/{path}", body)
    assert status == 200, raw


async def statuses(five: Five) -> dict[tuple[str, str], str]:
    """What GET /fleet says of each model on each node."""
    told = await five.gateway.get("/fleet")
    return {(n["name"], m["id"]): m["status"] for n in told["nodes"] for m in n["models"]}


async def until_settled(five: Five, within_s: float = 6.0) -> None:
    """Wait until nothing comes, goes or waits any more, and every node is up."""

    def holds(told: dict[str, Any]) -> bool:
        found = {model["status"] for node in told["nodes"] for model in node["models"]}
        is_up = all(node["up"] and not node["misses"] for node in told["nodes"])
        busy = told["loads"] or told["waiting"] or told["in_flight"]
        return is_up and not busy and found <= {"loaded", "sleeping"}

    await five.gateway.until("/fleet", holds, within_s)


async def clear(five: Five) -> None:
    """Nothing is on the two nodes any more."""
    neurons = [five.neurons[name] for name in BOTH]
    unloads = [
        neuron.post("/models/unload", {"model_id": model["id"], "force": True})
        for neuron in neurons
        for model in await neuron.get("/models")
    ]
    await asyncio.gather(*unloads)
    await five.gateway.until(
        "/fleet", lambda told: not any(n["models"] for n in told["nodes"] if n["name"] in BOTH)
    )


def check(outcomes: list[Outcome], node: str, within_s: float) -> None:
    """All of them were served, by that node, though not by the header of who had to wait for long."""
    assert [(each.code, each.text) for each in outcomes] == [(None, TEXT)] * len(outcomes)
    assert {each.node for each in outcomes} <= {node, None}, outcomes
    assert max(each.duration_s for each in outcomes) < within_s


async def loads_of(five: Five, node: str) -> float:
    counted = await five.neurons[node].counts("neuron_load_seconds_count", "harness")
    return float(sum(counted.values()))


@pytest.mark.parametrize("verb", ["load", "wake", "plan"])
async def test_an_order_whose_answer_is_spoilt_is_found_out_about_or_given_elsewhere(
    five: Five, verb: str
) -> None:
    orders = [each for each in ORDERS if each.verb == verb]
    way = five.ways[FAULTY]
    for move in ("load", "sleep") if verb == "wake" else ():
        moved = (order(five, f"models/{move}", model_id=each.model, node=FAULTY) for each in orders)
        await asyncio.gather(*moved)
    before = {node: await loads_of(five, node) for node in BOTH}
    for each in orders:
        way.strikes[f"/models/{verb}", each.model.encode()] = each.fault
    asked = await asyncio.gather(*(five.burst(each.model, 1) for each in orders))
    for each, outcomes in zip(orders, asked, strict=True):
        check(outcomes, each.node, within_s=9.0)
    await way.heal()
    await until_settled(five)
    found = await statuses(five)
    for each in orders:
        assert found[each.node, each.model] == "loaded"
    # each came up once, wherever
    gone = [each for each in orders if each.node == OTHER]
    assert await loads_of(five, OTHER) - before[OTHER] == len(gone)
    came = [each for each in orders if each.node == FAULTY and verb != "wake"]
    assert await loads_of(five, FAULTY) - before[FAULTY] == len(came)
    again = await asyncio.gather(*(five.burst(each.model, 1) for each in orders))
    for outcomes in again:
        assert {outcome.code for outcome in outcomes} == {None}
    await clear(five)


@pytest.mark.parametrize("verb", VICTIMS)
@pytest.mark.parametrize(
    ("fault", "node"),
    [pytest.param(fault, node, id=name) for name, fault, node in SPOILT],
)
async def test_room_whose_making_is_spoilt_is_used_or_made_elsewhere(
    five: Five, verb: str, fault: Fault, node: str
) -> None:
    victims = {at: VICTIMS[verb].format(at) for at in BOTH}
    loads = (order(five, "models/load", model_id=model, node=at) for at, model in victims.items())
    await asyncio.gather(*loads)
    five.ways[FAULTY].strikes[f"/models/{verb}", b""] = fault
    check(await five.burst(WANTS, 1), node, within_s=5.0)
    await five.ways[FAULTY].heal()
    await until_settled(five)
    found = await statuses(five)
    assert found[node, WANTS] == "loaded"
    stays = FAULTY if node == OTHER else OTHER
    assert found[stays, victims[stays]] == "loaded"
    assert found.get((node, victims[node])) == ("sleeping" if verb == "sleep" else None)
    await clear(five)


async def say_nonsense(five: Five) -> None:
    five.ways[FAULTY].control = Fault(says=NONSENSE)


def is_all_under_way(told: dict[str, Any]) -> bool:
    """One loads, one wakes, one is put to sleep, one's plan is asked, one waits for room."""
    found = {
        m["id"]: m["status"] for n in told["nodes"] if n["name"] == FAULTY for m in n["models"]
    }
    moves = [found.get(model) for model in (COMES, WAKES, DOZES[FAULTY], PLANS)]
    rooms = [each["model"] for each in told["waiting"] if each["room_s"]]
    return moves == ["loading", "loading", "sleeping", None] and rooms == [QUEUES]


@pytest.mark.parametrize("strike", [kill, stop, refuse, say_nonsense])
async def test_a_node_that_fails_with_all_of_it_under_way_keeps_nobody(
    five: Five, strike: Any
) -> None:
    up = {**DOZES, "": WAKES}
    await asyncio.gather(
        *(
            order(five, "models/load", model_id=model, node=node or FAULTY)
            for node, model in up.items()
        )
    )
    await order(five, "models/sleep", model_id=WAKES, node=FAULTY)
    await order(five, "nodes/drain", node=OTHER)
    five.ways[FAULTY].strikes["/models/plan", PLANS.encode()] = HANG
    served = [COMES, WAKES, PLANS, WANTS]
    asking = [asyncio.create_task(five.burst(model, 1)) for model in served]
    # the room is being made for the one, so that the other waits for it
    await five.gateway.until("/fleet", lambda told: len(told["waiting"]) == len(served))
    queued = asyncio.create_task(five.burst(QUEUES, 1))
    await five.gateway.until("/fleet", is_all_under_way)
    try:
        await strike(five)
        await order(five, "nodes/undrain", node=OTHER)
        began_s = time.monotonic()
        for outcomes in await asyncio.gather(*asking):
            check(outcomes, OTHER, within_s=12.0)
        assert {outcome.code for outcome in await queued} == {None}
        assert time.monotonic() - began_s < 10.0
        told = await five.gateway.get("/fleet")
        assert (told["loads"], told["waiting"]) == ([], [])
    finally:
        await heal(five)
    await until_settled(five)
    await clear(five)
    await order(five, "models/load", model_id=WANTS, node=FAULTY)
    check(await five.burst(WANTS, 1), FAULTY, within_s=5.0)
    await clear(five)
