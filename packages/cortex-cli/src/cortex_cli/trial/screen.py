# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a trial is, for a person: one moving line on a terminal, a line per step elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status


class Screen:
    """Shows what is being waited for. Write through `say`, so that lines and the moving one do not mix."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._last = ""
        self._began_s = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While this lasts, `now` shows."""
        self._status = self._console.status("")
        with self._status:
            yield

    def now(self, what: str, phase: str, ratio: float | None = None) -> None:
        """What is going on: cheap to call often."""
        line = f"{what}: {phase.replace('_', ' ')}"
        if self._console.is_terminal and self._status:
            part = "" if ratio is None else f" {ratio:.0%}"
            self._status.update(f"{line}{part} ({self._elapsed_s():.0f} s)")
        elif line != self._last:
            self.say(f"{line} ({self._elapsed_s():.1f} s)")
        self._last = line

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s
