# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_core.errors import QueueFullError, WaitTimeoutError
from cortex_core.node import ModelActivity
from neuron.admission import TurnedAwayError
from neuron.config import AdmissionSettings
from neuron.traffic import Link, Traffic


def make_link(max_running: int | None = 1, **limits: float) -> Link:
    traffic, link = Traffic(AdmissionSettings(**limits)), Link("unix:/nowhere")  # type: ignore[arg-type]
    traffic.note_open("m", link, max_running)
    return link


class Holder:
    """A request that holds its place until it is let go."""

    def __init__(self, link: Link, principal: str = "a") -> None:
        self.running = asyncio.Event()
        self.let_go = asyncio.Event()
        self.task = asyncio.create_task(self._hold(link, principal))

    async def _hold(self, link: Link, principal: str) -> None:
        async with link.place("m", principal):
            self.running.set()
            await self.let_go.wait()

    async def end(self) -> None:
        self.let_go.set()
        await self.task


async def until_waiting(link: Link, count: int) -> None:
    async with asyncio.timeout(2):
        while link.admission.waiting != count:
            await asyncio.sleep(0)


def counts(link: Link) -> tuple[int, int]:
    return link.admission.running, link.admission.waiting


async def test_a_link_is_drained_when_its_last_request_has_ended() -> None:
    link = Link("unix:/nowhere")
    assert await link.drained(0)
    async with link.place("m"):
        async with link.place("m"):
            pass
        assert not await link.drained(0)
        waiting = asyncio.create_task(link.drained(5))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting


async def test_a_link_that_is_gone_is_not_found() -> None:
    traffic, link = Traffic(), Link("unix:/nowhere")
    traffic.note_open("m", link)
    assert traffic.find("m") is link
    traffic.note_gone("m")
    assert link.gone.is_set()
    assert traffic.find("m") is None


async def test_a_request_waits_for_its_turn() -> None:
    link = make_link()
    first = Holder(link)
    await first.running.wait()
    second = Holder(link)
    await until_waiting(link, 1)
    assert not second.running.is_set()
    await first.end()
    async with asyncio.timeout(1):
        await second.running.wait()
    await second.end()
    assert counts(link) == (0, 0)


async def test_a_request_that_waited_too_long_is_refused_and_leaves_nothing() -> None:
    link = make_link(max_wait_s=0.02)
    first = Holder(link)
    await first.running.wait()
    with pytest.raises(WaitTimeoutError) as caught:
        async with link.place("m"):
            pass
    assert (caught.value.status, caught.value.retry_after_s) == (503, 2.0)
    assert counts(link) == (1, 0)
    await first.end()


async def test_a_turn_that_comes_in_the_instant_of_the_timeout_is_taken() -> None:
    link = make_link(max_wait_s=0.01)
    first = link.admission.enter("m", "a", lambda: None)
    second = Holder(link)
    await until_waiting(link, 1)
    asyncio.get_running_loop().call_later(0.02, link.admission.leave, first)
    # Both timers are due now: they run in one round of the loop, before `second` is told of either.
    time.sleep(0.04)  # noqa: ASYNC251
    async with asyncio.timeout(1):
        await second.running.wait()
    await second.end()
    assert counts(link) == (0, 0)


async def test_a_full_queue_is_told_at_once() -> None:
    link = make_link(max_waiting=0)
    first = Holder(link)
    await first.running.wait()
    with pytest.raises(QueueFullError):
        await link.place("m").__aenter__()
    await first.end()


async def test_one_who_gives_way_is_told_that_the_queue_is_full() -> None:
    link = make_link(max_waiting=2)
    first, second, third = Holder(link), Holder(link), Holder(link)
    await until_waiting(link, 2)
    other = Holder(link, "b")
    with pytest.raises(QueueFullError, match="2 requests waiting"):
        await third.task
    assert counts(link) == (1, 2)
    for holder in (first, second, other):
        await holder.end()
    assert counts(link) == (0, 0)


async def test_cancelled_waiters_give_their_places_back() -> None:
    link = make_link(max_per_principal=51)
    first = Holder(link)
    await first.running.wait()
    waiters = [Holder(link) for _ in range(50)]
    await until_waiting(link, 50)
    for waiter in waiters:
        waiter.task.cancel()
    await asyncio.wait({waiter.task for waiter in waiters})
    assert counts(link) == (1, 0)
    await first.end()
    assert not link.admission._held


async def test_a_waiter_that_is_cancelled_in_the_instant_of_its_turn_hands_it_on() -> None:
    link = make_link()
    first = Holder(link)
    await first.running.wait()
    second, third = Holder(link), Holder(link)
    await until_waiting(link, 2)
    first.let_go.set()
    while link.admission.waiting == 2:  # until `second` has its turn, of which it does not know yet
        await asyncio.sleep(0)
    assert not second.running.is_set()
    second.task.cancel()
    async with asyncio.timeout(1):
        await third.running.wait()
    assert second.task.cancelled()
    await third.end()
    assert counts(link) == (0, 0)


async def test_a_drain_turns_away_who_waits_and_waits_for_who_runs() -> None:
    link = make_link()
    first = Holder(link)
    await first.running.wait()
    second = Holder(link)
    await until_waiting(link, 1)
    draining = asyncio.create_task(link.drained(5))
    with pytest.raises(TurnedAwayError):
        await second.task
    assert not draining.done()
    await first.end()
    assert await draining
    async with link.place("m"):  # it was kept
        pass


async def test_who_is_only_counted_is_waited_for_where_that_matters() -> None:
    link = Link("unix:/nowhere")
    async with link.place("m", generates=False):
        assert await link.drained(0, counts=False)
        assert not await link.drained(0)
    assert await link.drained(0)


async def test_an_engine_that_is_gone_turns_everybody_away() -> None:
    traffic, link = Traffic(), Link("unix:/nowhere")
    traffic.note_open("m", link, 1)
    first = Holder(link)
    await first.running.wait()
    second = Holder(link)
    await until_waiting(link, 1)
    traffic.note_gone("m")
    with pytest.raises(TurnedAwayError):
        await second.task
    with pytest.raises(TurnedAwayError):
        await link.place("m").__aenter__()
    await first.end()


async def test_a_daemon_that_stops_turns_everybody_away() -> None:
    traffic, link = Traffic(), Link("unix:/nowhere")
    traffic.note_open("m", link, 1)
    first = Holder(link)
    await first.running.wait()
    second = Holder(link)
    await until_waiting(link, 1)
    traffic.close()
    assert traffic.is_closed
    with pytest.raises(TurnedAwayError):
        await second.task
    await first.end()


@pytest.mark.parametrize(
    ("configured", "engine_s", "limit"), [(None, 3, 3), (None, None, None), (2, 3, 2), (2, None, 2)]
)
async def test_health_tells_of_the_queue_and_its_limits(
    configured: int | None, engine_s: int | None, limit: int | None
) -> None:
    traffic = Traffic(AdmissionSettings(max_running=configured, max_waiting=7))
    link = Link("unix:/nowhere")
    traffic.note_open("m", link, engine_s)
    holders = [Holder(link) for _ in range(4)]
    await until_waiting(link, 4 - limit if limit else 0)
    told = traffic.with_queue(ModelActivity(id="m", status="loaded", running=1, waiting=5))
    assert (told.running, told.waiting) == (1, 5 + link.admission.waiting)
    assert (told.max_running, told.max_waiting, told.max_wait_s) == (limit, 7, 300.0)
    for holder in holders:
        holder.task.cancel()
    await asyncio.wait({holder.task for holder in holders})
    other = ModelActivity(id="loading", status="loading")
    assert traffic.with_queue(other) is other


STEPS = st.sampled_from(["come", "end", "cancel", "drain", "wait", "close"])


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(STEPS, st.integers(0, 9)), max_size=30))
def test_every_way_out_gives_the_place_back(steps: list[tuple[str, int]]) -> None:
    asyncio.run(go_through(steps))


async def go_through(steps: list[tuple[str, int]]) -> None:
    """Requests that come and leave in every way, several of them in the same instant."""
    link = Link("unix:/nowhere")
    link.apply_settings(AdmissionSettings(max_waiting=3), max_running=2)
    ends: list[asyncio.Event] = []
    requests: list[asyncio.Task[None]] = []

    async def request(end: asyncio.Event, principal: str, generates: bool) -> None:
        with contextlib.suppress(TurnedAwayError, QueueFullError):
            async with link.place("m", principal, generates=generates):
                await end.wait()

    for step, which in steps:
        if step == "come":
            ends.append(asyncio.Event())
            requests.append(asyncio.create_task(request(ends[-1], "ab"[which % 2], which > 1)))
        elif step == "end" and ends:
            ends[which % len(ends)].set()
        elif step == "cancel" and requests:
            requests[which % len(requests)].cancel()
        elif step == "drain":
            await link.drained(0.0)
        elif step == "wait":
            await asyncio.sleep(0)
        elif step == "close" and which == 0:
            link.close()
    for end in ends:
        end.set()
    if requests:
        await asyncio.wait(requests)
    for admission in (link.admission, link.counting):
        assert (admission.running, admission.waiting) == (0, 0)
        assert not admission._held
    assert await link.drained(0.0)
