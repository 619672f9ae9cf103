# SPDX-License-Identifier: GPL-3.0-or-later
"""One of five nodes fails, in each way that there is: what its clients are told, and that nobody else notices."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from fault_proxy import HANG, NO_EVENTS, NO_JSON, NOISE, NONSENSE, PAGE, Fault
from five_nodes import (
    ALONE,
    DIALECTS,
    FAULTY,
    FLOWING,
    IDLE_S,
    OTHER,
    SHARED,
    TEXT,
    WHOLE_S,
    Five,
    Outcome,
    ask,
    heal,
    kill,
    open_five,
    refuse,
    stop,
)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

WELL = None
CONNECTION = "upstream_connection_error"
PROTOCOL = "upstream_protocol_error"
TIMEOUT = "upstream_timeout"
NO_NODE = "no_healthy_node"
# What a stream ends in whose next bytes are no part of it.
BROKEN: set[str | None] = {CONNECTION, PROTOCOL, TIMEOUT}
# A little of what an answer, or a stream, has.
HALF = 150
# Looks 0.2 s apart, each of which may take 1 s, three in a row.
DOWN_S = 8.0
BACK_S = 8.0
# What takes no longer for what is wrong elsewhere.
SOON_S = 3.0

Strike = Callable[[Five], Awaitable[None]]


class Row(NamedTuple):
    """A fault, and what comes of it.

    Attributes:
        flowing: how a stream that flows when it strikes ends; WELL: it flows on.
        alone: how requests end at once for what is nowhere else.
        shared: likewise, for what is on another node too; whole answers, and streams.
        goes_down: the node is taken out of routing.
        within_s: in which time requests end.
    """

    name: str
    strike: Strike
    flowing: set[str | None]
    alone: set[str | None]
    shared: set[str | None] = {WELL}
    shared_stream: set[str | None] = {WELL}
    goes_down: bool = False
    within_s: float = SOON_S


def on_control(fault: Fault) -> Strike:
    async def strike(five: Five) -> None:
        five.ways[FAULTY].control = fault

    return strike


def on_inference(fault: Fault) -> Strike:
    async def strike(five: Five) -> None:
        five.ways[FAULTY].inference = fault

    return strike


async def slow_down(five: Five) -> None:
    five.ways[FAULTY].control = five.ways[FAULTY].inference = Fault(delay_s=IDLE_S / 4)


ROWS = [
    Row("killed", kill, {CONNECTION}, {CONNECTION, NO_NODE}, goes_down=True),
    Row(
        "stopped",
        stop,
        {TIMEOUT},
        # who hears nothing until the node is known to be down is asked elsewhere; a stream is given up before
        {TIMEOUT, CONNECTION, NO_NODE},
        shared={WELL, TIMEOUT},
        shared_stream={WELL, TIMEOUT},
        goes_down=True,
        within_s=WHOLE_S + SOON_S,
    ),
    Row("refuses", refuse, {WELL}, {CONNECTION, NO_NODE}, goes_down=True),
    Row("slow", slow_down, {WELL}, {WELL}),
    Row("hangs on control", on_control(HANG), {WELL}, {WELL}, goes_down=True),
    Row("noise on control", on_control(Fault(says=NOISE)), {WELL}, {WELL, NO_NODE}, goes_down=True),
    Row(
        "no JSON on control",
        on_control(Fault(says=NO_JSON)),
        {WELL},
        {WELL, NO_NODE},
        goes_down=True,
    ),
    Row(
        "nonsense on control",
        on_control(Fault(says=NONSENSE)),
        {WELL},
        {WELL, NO_NODE},
        goes_down=True,
    ),
    Row("a page on control", on_control(Fault(says=PAGE)), {WELL}, {WELL, NO_NODE}, goes_down=True),
    Row("half of control", on_control(Fault(cut_after=2)), {WELL}, {WELL, NO_NODE}, goes_down=True),
    Row(
        "hangs on inference",
        on_inference(HANG),
        {TIMEOUT},
        {TIMEOUT},
        shared={WELL, TIMEOUT},
        shared_stream={WELL, TIMEOUT},
        within_s=WHOLE_S + SOON_S,
    ),
    Row("noise on inference", on_inference(Fault(says=NOISE)), BROKEN, {PROTOCOL}),
    Row("no JSON on inference", on_inference(Fault(says=NO_JSON)), BROKEN, {PROTOCOL}),
    Row("a page on inference", on_inference(Fault(says=PAGE)), BROKEN, {PROTOCOL}),
    Row(
        "a stream of nothing",
        on_inference(Fault(says=NO_EVENTS)),
        BROKEN,
        {PROTOCOL},
        shared_stream={WELL, PROTOCOL},
    ),
    Row("a head and nothing else", on_inference(Fault(cut_after=0)), {CONNECTION}, {CONNECTION}),
    Row(
        "half an answer",
        on_inference(Fault(cut_after=HALF)),
        {CONNECTION},
        {CONNECTION},
        shared_stream={WELL, CONNECTION},
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def five(open_fleet: Any) -> AsyncIterator[Five]:
    async with open_five(open_fleet) as made:
        yield made


@asynccontextmanager
async def others_served(five: Five) -> AsyncIterator[None]:
    """Meanwhile somebody asks for another model, again and again, and notices nothing."""
    outcomes: list[Outcome] = []

    async def go_on() -> None:
        while True:
            outcomes.extend(await five.burst(OTHER, 1))
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as tasks:
        going = tasks.create_task(go_on())
        try:
            yield
        finally:
            going.cancel()
    assert len(outcomes) >= 4
    assert {(each.code, each.text, each.node) for each in outcomes} == {(WELL, TEXT, "e")}
    assert max(each.duration_s for each in outcomes) < SOON_S


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_a_node_that_fails_is_told_so_and_nobody_else_notices(five: Five, row: Row) -> None:
    flowing = await flow(five)
    try:
        async with others_served(five):
            await row.strike(five)
            alone, shared = await asyncio.gather(five.burst(ALONE), five.burst(SHARED))
            check(alone, row.alone, row.alone, row.within_s)
            check(shared, row.shared, row.shared_stream, row.within_s)
            await check_flowing(flowing, row)
            await (check_down(five) if row.goes_down else check_up(five))
    finally:
        await heal(five)
        await leave(flowing)
    await five.until_node(up=True, models=3, within_s=BACK_S)
    await check_up(five)
    check(await five.burst(ALONE), {WELL}, {WELL}, SOON_S)
    await five.until_quiet()


def check(
    outcomes: list[Outcome], whole: set[str | None], stream: set[str | None], within_s: float
) -> None:
    for each in outcomes:
        assert each.code in (stream if each.is_stream else whole | stream), each
        assert each.duration_s < within_s
        assert each.text == TEXT if each.code is None else TEXT.startswith(each.text)


async def flow(five: Five) -> list[asyncio.Task[Outcome]]:
    """An endless stream in each dialect, of which some has come."""
    flows = [asyncio.Event() for _ in DIALECTS]
    asked = [read(FLOWING, stream=True) for read in DIALECTS]
    flowing = [
        asyncio.create_task(ask(five.gateway.endpoint, *each, flows=event))
        for each, event in zip(asked, flows, strict=True)
    ]
    async with asyncio.timeout(SOON_S):
        await asyncio.gather(*(event.wait() for event in flows))
    return flowing


async def check_flowing(flowing: list[asyncio.Task[Outcome]], row: Row) -> None:
    if row.flowing == {WELL}:
        assert not any(task.done() for task in flowing)
        return
    async with asyncio.timeout(SOON_S):
        ended = await asyncio.gather(*flowing)
    assert {each.code for each in ended} <= row.flowing
    assert all(each.text.startswith(TEXT) for each in ended)


async def check_down(five: Five) -> None:
    """It is taken out of routing after its misses, said so, and what it had alone is refused at once."""
    await five.until_node(up=False, within_s=DOWN_S)
    node = await five.node()
    assert node["misses"] >= 3
    assert node["models"] == []
    assert await five.locations(ALONE) == []
    assert await five.locations(SHARED) == ["d"]
    alone, shared = await asyncio.gather(five.burst(ALONE), five.burst(SHARED))
    check(alone, {NO_NODE}, {NO_NODE}, 1.0)
    check(shared, {WELL}, {WELL}, 1.0)


async def check_up(five: Five) -> None:
    node = await five.node()
    assert node["up"]
    assert {model["status"] for model in node["models"]} == {"loaded"}
    assert await five.locations(ALONE) == ["c"]
    assert await five.locations(SHARED) == ["c", "d"]


async def leave(flowing: list[asyncio.Task[Outcome]]) -> None:
    for task in flowing:
        task.cancel()
    await asyncio.wait(flowing)
