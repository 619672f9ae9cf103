# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast a download is, and when it will be done. Pure."""

from collections import deque

# Long enough to even out bursts, short enough to notice that a line has become slow.
WINDOW_S = 20.0


class Rate:
    """Bytes over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, done_bytes: int) -> None:
        """So many bytes are there now."""
        if self._seen and done_bytes < self._seen[-1][1]:  # begun again
            self._seen.clear()
        self._seen.append((now_s, done_bytes))
        while now_s - self._seen[0][0] > WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()

    def eta_s(self, total_bytes: int) -> float | None:
        """Seconds until all are there; None: nothing has come yet."""
        if len(self._seen) < 2:
            return None
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        if last <= first or last_s <= first_s:
            return None
        return round((total_bytes - last) * (last_s - first_s) / (last - first), 1)
