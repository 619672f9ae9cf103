# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine host asks of an engine. Pure.

To add an engine: one module in `neuron.host.engines`, one line in the table there.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cortex_core.http.front import Handler
from neuron.host.messages import Activity, Phase, Ready, Start, Steps

Report = Callable[[Phase | Steps], None]


class StartFailedError(Exception):
    """The engine cannot come up. `kind`, message and `suggestion` as in messages.Failed."""

    def __init__(self, kind: str, message: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.suggestion = suggestion


class PoisonedError(Exception):
    """The engine goes on, and what it computes is no longer sound. `logits` as in messages.Failed."""

    def __init__(self, message: str, logits: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.logits = logits or []


class Engine(Protocol):
    """Runs one model."""

    @staticmethod
    def preload(settings: Mapping[str, Any]) -> None:
        """Import ahead what every engine of this kind needs. Blocks; touches no device."""

    async def start(self, start: Start, report: Report) -> Ready:
        """Bring the model up; return when it can serve. What it has to tell it may `report` later, too.

        Raises:
            StartFailedError: with the true cause.
        """

    def routes(self) -> Mapping[str, Handler]:
        """Path to handler. A handler is cancelled when its client leaves, and must then free the engine."""

    def activity(self) -> Activity:
        """What the engine is doing now. Never waits.

        Raises:
            EngineDiedError: a process of it has ended; it does not come back.
        """

    async def beat(self) -> None:
        """Go once through the engine's own loop, and all of its processes: returns when they have answered.

        Asked from the start on; before the engine is up there is nothing to wait for.
        """

    async def probe(self) -> None:
        """Look whether what it computes is sound. Does nothing where nothing was computed since the last look.

        Raises:
            PoisonedError: it is not.
        """

    async def sleep(self, level: int) -> None:
        """Free the device's memory. Level 1 keeps the weights in host memory, level 2 drops them.

        Asked only where Ready.can_sleep, and with nothing in flight. Whatever it raises, the engine is ended.
        """

    async def wake(self) -> None:
        """Serve again after a sleep. Whatever it raises, the engine is ended."""

    async def stop(self) -> None:
        """End what the engine started, within a few seconds."""
