# SPDX-License-Identifier: GPL-3.0-or-later
"""How requests reach the engines: one link per engine, with its connections and the places that requests have on it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from cortex_core.errors import WaitTimeoutError
from cortex_core.http.client import Client
from cortex_core.node import ModelActivity
from neuron.admission import ANONYMOUS, Admission, Place, Stage, TurnedAwayError
from neuron.config import AdmissionSettings

# Requests that generate nothing take no place of the engine's. So many are asked of a host at once, since its one loop
# does them.
MAX_COUNTS = 4
# A whole answer is silent until it is complete, and may take long. An engine that hangs is not told by this.
ENGINE_IDLE_S = 3600.0


class Link:
    """One engine, as requests reach it.

    Attributes:
        gone: set when the engine has ended, and the residents know why.
        used_s: when a request last ended here, or the link was made; monotonic seconds.
        admission: who runs and who waits; without limits until the engine serves.
        counting: the same of requests that generate nothing, which wait for nobody who does.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client = Client(endpoint, idle_timeout_s=ENGINE_IDLE_S)
        self.gone = asyncio.Event()
        self.admission = Admission()
        self.counting = Admission()
        self.used_s = time.monotonic()
        # Nothing runs that generates, and nothing that is only counted.
        self._idle, self._counted = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._counted.set()

    @asynccontextmanager
    async def place(
        self, model: str, principal: str = ANONYMOUS, *, generates: bool = True
    ) -> AsyncIterator[None]:
        """Hold this while a request is in flight; it is entered when it is the request's turn.

        Args:
            model: for errors.
            principal: on whose behalf.
            generates: it takes the engine's time; else it is only counted.

        Raises:
            QueueFullError: at once, or when it gave way to a principal who had none waiting.
            RateLimitExceededError: at once, as Admission says.
            WaitTimeoutError: its turn did not come in time.
            TurnedAwayError: no turn will come.
        """
        moved = asyncio.Event()
        admission = self.admission if generates else self.counting
        ended = self._idle if generates else self._counted
        place = admission.enter(model, principal, moved.set)
        # Nothing may wait between `enter` and `try`: whoever leaves in between would keep the place for ever.
        try:
            if place.stage is Stage.WAITING:
                await _wait(admission, model, place, moved)
            if place.gave_way:
                raise admission.queue_full(model)
            if place.stage is Stage.OUT:
                raise TurnedAwayError
            ended.clear()
            yield
        finally:
            admission.leave(place)
            self.used_s = time.monotonic()
            if not admission.running:
                ended.set()

    async def drained(self, within_s: float, *, counts: bool = True) -> bool:
        """Turn away who waits, and wait until nothing runs; False: `within_s` was not enough.

        Args:
            within_s: seconds.
            counts: whether requests that generate nothing matter; who sleeps can do them all the same.
        """
        self.admission.turn_away()
        if counts:
            self.counting.turn_away()
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
                if counts:
                    await self._counted.wait()
        except TimeoutError:
            return False
        return True

    def apply_settings(self, settings: AdmissionSettings, max_running: int | None) -> None:
        """The limits from now on; `max_running` None: there is none."""
        self.admission.apply_settings(msgspec.structs.replace(settings, max_running=max_running))
        self.counting.apply_settings(msgspec.structs.replace(settings, max_running=MAX_COUNTS))

    def close(self) -> None:
        """Nobody waits any longer; what runs goes on."""
        self.admission.close()
        self.counting.close()


async def _wait(admission: Admission, model: str, place: Place, moved: asyncio.Event) -> None:
    longest_s = admission.settings.max_wait_s
    try:
        async with asyncio.timeout(longest_s):
            await moved.wait()
    except TimeoutError:
        if place.stage is Stage.WAITING:  # else its turn came in the same instant
            raise WaitTimeoutError(
                model=model,
                waited_s=longest_s,
                what="its turn",
                retry_after_s=admission.retry_after_s,
            ) from None


class Traffic:
    """The links of all engines that serve."""

    def __init__(self, settings: AdmissionSettings | None = None) -> None:
        self._settings = settings or AdmissionSettings()
        self._links: dict[str, Link] = {}
        self._closed = False

    @property
    def settings(self) -> AdmissionSettings:
        """Of every link."""
        return self._settings

    @property
    def is_closed(self) -> bool:
        """Whether the daemon takes no more requests."""
        return self._closed

    def find(self, model_id: str) -> Link | None:
        """The link of a model, by the id it was loaded under; None: it does not serve."""
        return self._links.get(model_id)

    def note_open(self, model_id: str, link: Link, max_running: int | None = None) -> None:
        """An engine serves from now on; `max_running` requests at once, None: any number of them."""
        if self._settings.max_running is not None:
            max_running = self._settings.max_running
        link.apply_settings(self._settings, max_running)
        self._links[model_id] = link

    def note_gone(self, model_id: str) -> None:
        """It does not any more. Its connections are left to break, so that who reads from one is told."""
        link = self._links.pop(model_id)
        link.gone.set()
        link.close()

    def close(self) -> None:
        """The daemon stops: nobody waits any longer, and what runs goes on."""
        self._closed = True
        for link in self._links.values():
            link.close()

    def queues(self) -> list[tuple[str, float | None]]:
        """How many wait for each model that serves."""
        return [(model_id, link.admission.waiting) for model_id, link in self._links.items()]

    def with_queue(self, activity: ModelActivity) -> ModelActivity:
        """What a model's engine does, and what waits for it here."""
        link = self._links.get(activity.id)
        if link is None:
            return activity
        limits = link.admission.settings
        return msgspec.structs.replace(
            activity,
            waiting=activity.waiting + link.admission.waiting,
            max_running=limits.max_running,
            max_waiting=limits.max_waiting,
            max_wait_s=limits.max_wait_s,
        )
