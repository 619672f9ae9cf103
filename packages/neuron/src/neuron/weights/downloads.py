# SPDX-License-Identifier: GPL-3.0-or-later
"""Which downloads are under way: one per repository however many want it, for as long as somebody does."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cortex_core import logs
from cortex_core.weights import DownloadProgress
from neuron.weights.child import Child, open_child
from neuron.weights.messages import Fetch, Fetched, Go, Planned, Progressed, Refused
from neuron.weights.rate import Rate
from neuron.weights.refusals import WeightsError

log = logs.get(__name__)

# A child that somebody killed is started again, and goes on where it was.
MAX_STARTS = 3

Report = Callable[[DownloadProgress], None]


class Flight:
    """One download, as those who wait for it see it.

    Attributes:
        model_id: with its scheme.
        fetch: what is fetched.
        folder: of the repository in its cache.
        planned: what it will take; None: not known yet.
        progress: how far it is.
        ended: it has, well or not.
        error: why it has no files; None: it has, or it is not known yet.
        pid: of its process; None: there is none now.
    """

    def __init__(self, model_id: str, fetch: Fetch, folder: Path) -> None:
        self.model_id = model_id
        self.fetch = fetch
        self.folder = folder
        self.planned: Planned | None = None
        self.progress = DownloadProgress()
        self.ended = asyncio.Event()
        self.error: WeightsError | None = None
        self.pid: int | None = None
        self.task: asyncio.Task[None] | None = None
        self.ending = False
        self._rate = Rate()
        self._holders: list[Report] = []

    @property
    def remaining_bytes(self) -> int:
        """Still to come, as far as it is known."""
        return max(0, self.progress.total_bytes - self.progress.done_bytes)

    @contextmanager
    def held(self, report: Report) -> Iterator[None]:
        """Keep it under way. When the last holder leaves, it is ended."""
        self._holders.append(report)
        report(self.progress)
        try:
            yield
        finally:
            self._holders.remove(report)
            if not self._holders:
                self.end()

    def end(self) -> None:
        """End it, if it has not ended. What it has fetched stays, and is gone on with."""
        if self.task is not None and not self.ending:
            self.ending = True
            self.task.cancel()

    def note_planned(self, planned: Planned, now_s: float) -> None:
        """What it will take."""
        self.planned = planned
        self.note_done(planned.total_bytes - planned.missing_bytes, now_s)

    def note_done(self, done_bytes: int, now_s: float) -> None:
        """So much is here."""
        total = self.planned.total_bytes if self.planned else 0
        done = min(done_bytes, total)
        self._rate.note(now_s, done)
        self.progress = DownloadProgress(
            done_bytes=done,
            total_bytes=total,
            ratio=round(done / total, 4) if total else None,
            eta_s=self._rate.eta_s(total),
        )
        for report in list(self._holders):
            report(self.progress)


MakeRoom = Callable[[Flight, Planned], Awaitable[None]]


class Downloads:
    """The downloads of one daemon.

    Args:
        tasks: that they run in.
        make_room: sees to it that there is room for what one will take; raises WeightsError.
        environ: of their processes.
    """

    def __init__(
        self, tasks: asyncio.TaskGroup, make_room: MakeRoom, environ: Mapping[str, str]
    ) -> None:
        self._tasks = tasks
        self._make_room = make_room
        self._environ = environ
        self._flights: dict[Path, Flight] = {}
        self._closed = False

    def all(self) -> list[Flight]:
        """Those under way."""
        return list(self._flights.values())

    def close(self) -> None:
        """End those under way, and begin no more."""
        self._closed = True
        for flight in self.all():
            flight.end()

    def find(self, folder: Path) -> Flight | None:
        """The download of a repository."""
        return self._flights.get(folder)

    async def fetch(self, model_id: str, fetch: Fetch, folder: Path, report: Report) -> Flight:
        """Have it fetched, by the download under way or a new one; returns when all of it is here.

        Raises:
            WeightsError: it cannot be had.
        """
        while True:
            flight = self._flights.get(folder)
            if flight is None:
                if self._closed:
                    raise _interrupted("the daemon stops", passing=False)
                flight = self._begin(model_id, fetch, folder)
            if flight.ending or flight.fetch.quant != fetch.quant:
                await flight.ended.wait()
                continue
            with flight.held(report):
                await flight.ended.wait()
            if flight.error is None:
                return flight
            # Another asked for it to be loaded, which this one does not.
            if fetch.with_gguf and not flight.fetch.with_gguf and _is_gguf(flight.error):
                continue
            # One error for all who wait: without this each would add its own frames to the traceback.
            raise flight.error.with_traceback(None)

    def _begin(self, model_id: str, fetch: Fetch, folder: Path) -> Flight:
        flight = self._flights[folder] = Flight(model_id, fetch, folder)
        flight.task = self._tasks.create_task(self._live(flight))
        # Not in a `finally` of the task: one that is cancelled before its first step never gets there.
        flight.task.add_done_callback(lambda _: self._note_end(flight))
        return flight

    def _note_end(self, flight: Flight) -> None:
        if flight.task is not None and flight.task.cancelled():
            flight.error = _interrupted("it was called off", passing=False)
        flight.ending = True
        del self._flights[flight.folder]
        flight.ended.set()

    async def _live(self, flight: Flight) -> None:
        began_s = time.monotonic()
        try:
            fetched = await self._persist(flight)
        except WeightsError as error:
            flight.error = error
            log.warning(
                "download failed", model=flight.model_id, kind=error.kind, reason=str(error)
            )
        except Exception as error:  # a fault of ours must not end the engines
            log.exception("unhandled fault", model=flight.model_id)
            flight.error = _interrupted(repr(error), passing=False)
        else:
            log.info(
                "model downloaded",
                model=flight.model_id,
                endpoint=flight.fetch.endpoint,
                revision=fetched.revision,
                bytes_in=flight.planned.missing_bytes if flight.planned else 0,
                duration_s=round(time.monotonic() - began_s, 3),
            )

    async def _persist(self, flight: Flight) -> Fetched:
        log.info("download begins", model=flight.model_id, endpoint=flight.fetch.endpoint)
        ended = ""
        for attempt in range(1, MAX_STARTS + 1):
            try:
                return await self._attempt(flight)
            except _ChildEndedError as error:
                ended = str(error)
                log.warning(
                    "download interrupted",
                    model=flight.model_id,
                    attempt=attempt,
                    reason=ended,
                )
        raise _interrupted(ended, passing=True)

    async def _attempt(self, flight: Flight) -> Fetched:
        async with open_child(self._environ) as child:
            flight.pid = child.pid
            try:
                await child.tell(flight.fetch)
                return await self._hear(flight, child)
            finally:
                flight.pid = None

    async def _hear(self, flight: Flight, child: Child) -> Fetched:
        while (message := await child.read()) is not None:
            if isinstance(message, Planned):
                flight.note_planned(message, time.monotonic())
                await self._make_room(flight, message)
                await child.tell(Go())
            elif isinstance(message, Progressed):
                flight.note_done(message.done_bytes, time.monotonic())
            elif isinstance(message, Refused):
                raise WeightsError(
                    message.kind, message.reason, message.suggestion, passing=message.passing
                )
            else:
                return message
        raise _ChildEndedError(await child.why_ended())


class _ChildEndedError(Exception):
    """The process ended before its last word."""


def _is_gguf(error: WeightsError) -> bool:
    return error.kind == "unsupported_architecture"


def _interrupted(reason: str, *, passing: bool) -> WeightsError:
    return WeightsError(
        "repo_fetch_failed",
        f"the download was interrupted: {reason}",
        "Ask again: it goes on where it was.",
        passing=passing,
    )
