# SPDX-License-Identifier: GPL-3.0-or-later
"""When is an engine that was lost started again, and when is it given up? Pure."""

from collections import deque

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0


class Restarts:
    """The losses of one engine.

    Args:
        most: restarts within the window; one more loss, and it is given up.
        window_s: seconds of service after which a loss is forgotten.
    """

    def __init__(self, most: int, window_s: float) -> None:
        self.most = most
        self.window_s = window_s
        self._losses_s: deque[float] = deque()

    def note_loss(self, now_s: float) -> float | None:
        """It was lost, `now_s` by a clock that runs while it serves. Returns the seconds until it is started again; None: it is given up.

        The first restart is at once, since most causes pass; each further one waits twice as long.
        """
        self._losses_s.append(now_s)
        while self._losses_s[0] <= now_s - self.window_s:
            self._losses_s.popleft()
        earlier = len(self._losses_s) - 1
        if earlier >= self.most:
            return None
        return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (earlier - 1)) if earlier else 0.0
