# SPDX-License-Identifier: GPL-3.0-or-later
"""One timer for many deadlines: it goes off for the earliest, and never for none."""

import asyncio
import math

from cortex_core.http.sweeper import Sweeper


class Swept:
    """Deadlines and what a sweeper makes of them."""

    def __init__(self, *deadlines_s: float) -> None:
        self.deadlines_s = list(deadlines_s)
        self.ended_s: list[float] = []
        self.ended = asyncio.Event()
        self.sweeper = Sweeper(self.sweep)

    def sweep(self, now_s: float) -> float:
        self.ended_s += sorted(due_s for due_s in self.deadlines_s if due_s <= now_s)
        self.deadlines_s = [due_s for due_s in self.deadlines_s if due_s > now_s]
        if not self.deadlines_s:
            self.ended.set()
        return min(self.deadlines_s, default=math.inf)


async def test_each_deadline_ends_in_its_turn_however_they_were_told() -> None:
    now_s = asyncio.get_running_loop().time()
    swept = Swept(now_s + 0.03, now_s + 0.01, now_s + 0.02)
    for deadline_s in swept.deadlines_s:
        swept.sweeper.note(deadline_s)
    await swept.ended.wait()
    assert swept.ended_s == [now_s + 0.01, now_s + 0.02, now_s + 0.03]


async def test_later_deadlines_cost_no_timer() -> None:
    swept = Swept()
    swept.sweeper.note(1e9)
    timer = swept.sweeper._timer
    for _ in range(3):
        swept.sweeper.note(2e9)
    assert swept.sweeper._timer is timer
    swept.sweeper.note(5e8)
    assert timer is not None
    assert timer.cancelled()
    swept.sweeper.close()


async def test_without_deadlines_there_is_no_timer() -> None:
    swept = Swept()
    swept.sweeper.note(math.inf)
    assert swept.sweeper._timer is None
    swept.sweeper.note(asyncio.get_running_loop().time())
    await swept.ended.wait()
    assert swept.sweeper._timer is None


async def test_a_closed_sweeper_leaves_no_timer() -> None:
    swept = Swept()
    swept.sweeper.note(1e9)
    timer = swept.sweeper._timer
    swept.sweeper.close()
    assert timer is not None
    assert timer.cancelled()
    assert swept.sweeper._timer is None
