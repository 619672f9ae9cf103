# SPDX-License-Identifier: GPL-3.0-or-later
"""When is the next of many deadlines due? One timer for all of them, so that a deadline costs a comparison."""

import asyncio
import math
from collections.abc import Callable

# A loop's timers may go off this much early, by its clock; what is due within is due.
EARLY_S = 0.001


class Sweeper:
    """Calls `sweep` when a deadline is due.

    Args:
        sweep: ends what is due at the time it is given (of the loop's clock), and returns the next deadline;
            infinity: there is none.
    """

    __slots__ = ("_due_s", "_sweep", "_timer")

    def __init__(self, sweep: Callable[[float], float]) -> None:
        self._sweep = sweep
        self._due_s = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def note(self, deadline_s: float) -> None:
        """A deadline, of the loop's clock. One that passes without need is no harm."""
        if deadline_s < self._due_s:
            self._set(deadline_s)

    def close(self) -> None:
        """No deadline matters any longer."""
        self._set(math.inf)

    def _set(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        self._timer = None
        if due_s < math.inf:
            self._timer = asyncio.get_running_loop().call_at(due_s, self._go)

    def _go(self) -> None:
        self._timer = None
        self._due_s = math.inf
        self.note(self._sweep(asyncio.get_running_loop().time() + EARLY_S))
