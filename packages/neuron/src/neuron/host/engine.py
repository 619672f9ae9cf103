# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine host asks of an engine. Pure.

To add an engine: one module in `neuron.host.engines`, one line in the table there.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from cortex_core.http.front import Handler
from neuron.host.messages import Activity, Phase, Ready, Start

Report = Callable[[Phase], None]


class StartFailedError(Exception):
    """The engine cannot come up. `kind`, message and `suggestion` as in messages.Failed."""

    def __init__(self, kind: str, message: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.suggestion = suggestion


class Engine(Protocol):
    """Runs one model."""

    async def start(self, start: Start, report: Report) -> Ready:
        """Bring the model up; return when it can serve.

        Raises:
            StartFailedError: with the true cause.
        """

    def routes(self) -> Mapping[str, Handler]:
        """Path to handler. A handler is cancelled when its client leaves, and must then free the engine."""

    def activity(self) -> Activity:
        """What the engine is doing now. Never waits."""

    async def stop(self) -> None:
        """End what the engine started, within a few seconds."""
