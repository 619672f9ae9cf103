# SPDX-License-Identifier: GPL-3.0-or-later
"""How requests reach the engines: one link per engine, with its connections and what is in flight on it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from cortex_core.http.client import Client

# A whole answer is silent until it is complete, and may take long. An engine that hangs is not told by this.
ENGINE_IDLE_S = 3600.0


class Link:
    """One engine, as requests reach it.

    Attributes:
        gone: set when the engine has ended, and the residents know why.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client = Client(endpoint, idle_timeout_s=ENGINE_IDLE_S)
        self.gone = asyncio.Event()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Hold this while a request is in flight: an unload waits for it."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def drained(self, within_s: float) -> bool:
        """Wait until nothing is in flight; False: `within_s` was not enough."""
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Traffic:
    """The links of all engines that serve."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}

    def find(self, model_id: str) -> Link | None:
        """The link of a model, by the id it was loaded under; None: it does not serve."""
        return self._links.get(model_id)

    def note_open(self, model_id: str, link: Link) -> None:
        """An engine serves from now on."""
        self._links[model_id] = link

    def note_gone(self, model_id: str) -> None:
        """It does not any more. Its connections are left to break, so that who reads from one is told."""
        self._links.pop(model_id).gone.set()
