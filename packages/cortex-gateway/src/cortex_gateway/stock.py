# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks every neuron which models' files it has, now and then, and tells the fleet: that says what models not loaded could do.

It is asked apart from what is polled: a neuron looks through its disks for it, and nothing waits for the answer.
"""

import asyncio
import math
import time
from collections.abc import Mapping

from cortex_core import logs
from cortex_core.errors import CortexError
from cortex_core.http.client import Client, RefusedError
from cortex_core.weights import WeightsReport
from cortex_gateway.fleet import Fleet
from cortex_gateway.openai_client import OpenAIClient

log = logs.get(__name__)

# Seconds between two questions to one neuron, for an answer, and between two looks at who is to be asked.
EVERY_S = 60.0
ANSWER_S = 30.0
LOOK_S = 1.0


class Stock:
    """Keeps the fleet's knowledge of files.

    Args:
        fleet: told what was found.
        clients: one per node, as they are now.
    """

    def __init__(self, fleet: Fleet, clients: Mapping[str, Client]) -> None:
        self._fleet = fleet
        self._clients = clients
        self._asked_s: dict[tuple[str, str], float] = {}  # by name and endpoint

    async def run(self) -> None:
        """Ask each neuron when it is up, and again now and then, until cancelled."""
        while True:
            try:
                await self.ask_due(time.monotonic())
            except Exception:  # a fault of ours must not end the gateway
                log.exception("asking for files failed")
            await asyncio.sleep(LOOK_S)

    async def ask_due(self, now_s: float) -> None:
        """Ask those whose answer is too old, side by side."""
        up = [(node.name, node.endpoint) for node in self._fleet.view().nodes if node.is_up]
        self._asked_s = {each: self._asked_s[each] for each in up if each in self._asked_s}
        due = [each for each in up if now_s - self._asked_s.get(each, -math.inf) >= EVERY_S]
        async with asyncio.TaskGroup() as tasks:
            for each in due:
                self._asked_s[each] = now_s
                tasks.create_task(self._ask(each[0]))

    async def _ask(self, name: str) -> None:
        client = self._clients.get(name)
        if isinstance(client, OpenAIClient):  # it has no files of ours
            self._fleet.note_weights(name, ())
        if client is None or isinstance(client, OpenAIClient):
            return
        try:
            told = await client.ask("GET", "/weights", WeightsReport, timeout_s=ANSWER_S)
        except (CortexError, RefusedError) as error:
            log.debug("files not told", node=name, reason=str(error))
            return
        if self._clients.get(name) is client:  # else it is another machine by now, maybe
            self._fleet.note_weights(name, told.weights)
