# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that count tokens for models that are not up: their template and tokenizer, without weights or device.

Few, since each has the engine's imports in memory: started when somebody counts, ended when nobody does for a while, or for
another model's sake.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from cortex_core import logs
from cortex_core.control import ModelSpec
from cortex_core.errors import (
    CortexError,
    EngineDiedError,
    LoadFailedError,
    QueueFullError,
    ShuttingDownError,
    WaitTimeoutError,
)
from neuron.admission import TurnedAwayError
from neuron.harnesses.environment import environ
from neuron.harnesses.run import Launch, Shared
from neuron.host.messages import Failed, Message, Ready, Start
from neuron.host_process import HostProcess, HostSilentError, HostStartError, start_host
from neuron.traffic import Link

log = logs.get(__name__)

MAX_COUNTERS = 2
IDLE_S = 300.0
# Whoever counts waits no longer for one to come up; it comes up all the same.
START_S = 60.0
# So long one that did not come up is not tried again.
FAILED_S = 30.0
STOP_S = 2.0


class Counter:
    """One of the processes, as those who count see it.

    Attributes:
        spec: what it counts for.
        launch: how it was started.
        settled: it counts, or has failed.
        link: how it is reached; None: it does not count yet, or no longer.
        error: why it failed; None: it has not.
        failed_s: when that was; monotonic seconds. Who asks meanwhile does not put off the next attempt.
        users: how many count by it, or wait to.
        used_s: when the last of them left; monotonic seconds.
        task: lives its life; None: it has not begun.
    """

    def __init__(self, spec: ModelSpec, launch: Launch) -> None:
        self.spec = spec
        self.launch = launch
        self.settled = asyncio.Event()
        self.link: Link | None = None
        self.error: CortexError | None = None
        self.failed_s = -math.inf
        self.users = 0
        self.used_s = time.monotonic()
        self.task: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        """The id of its model."""
        return self.spec.model_id

    @property
    def is_running(self) -> bool:
        """Whether it has a process, or is about to."""
        return self.task is not None and not self.task.done()

    def serves(self, spec: ModelSpec, launch: Launch) -> bool:
        """Whether it counts for that, of the same files, or is known to have failed to."""
        is_over = self.settled.is_set() and self.link is None and self.error is None
        return not is_over and self.spec == spec and self.launch == launch


class Counters:
    """The owner of the processes.

    Args:
        shared: what all harnesses share.
        idle_s: seconds after which one ends that nobody has used.
    """

    def __init__(self, shared: Shared, *, idle_s: float = IDLE_S) -> None:
        self._shared = shared
        self._idle_s = idle_s
        self._all: list[Counter] = []
        self._closing = False

    @asynccontextmanager
    async def open(self, spec: ModelSpec, launch: Launch) -> AsyncIterator[Link]:
        """The process that counts for a spec, started where there is none; held while its answer is read.

        Raises:
            QueueFullError: others are in use, as many as there may be.
            WaitTimeoutError: it did not come up in time, or its turn did not come.
            LoadFailedError: it cannot come up.
            EngineDiedError: it has just ended.
            ShuttingDownError: no more are started.
        """
        counter = self._ensure(spec, launch)
        counter.users += 1
        try:
            link = await self._until_open(counter)
            async with link.place(counter.model):
                yield link
        except TurnedAwayError:
            raise EngineDiedError(model=counter.model, reason="its token counter ended") from None
        finally:
            counter.users -= 1
            counter.used_s = time.monotonic()

    async def _until_open(self, counter: Counter) -> Link:
        try:
            async with asyncio.timeout(START_S):
                await counter.settled.wait()
        except TimeoutError:
            raise WaitTimeoutError(
                model=counter.model, waited_s=START_S, what="its token counter"
            ) from None
        if counter.error is not None:
            # One error for all who wait: without this each would add its own frames to the traceback.
            raise counter.error.with_traceback(None)
        if counter.link is None:
            raise TurnedAwayError
        return counter.link

    def _ensure(self, spec: ModelSpec, launch: Launch) -> Counter:
        if self._closing:
            raise ShuttingDownError(daemon="neuron")
        self._forget()
        for counter in self._all:
            if counter.serves(spec, launch):
                return counter
        self._make_room(spec.model_id)
        counter = Counter(spec, launch)
        counter.task = self._shared.tasks.create_task(self._live(counter))
        # Not in a `finally` of the task: one that is cancelled before its first step never gets there.
        counter.task.add_done_callback(lambda _: counter.settled.set())
        self._all.append(counter)
        return counter

    def _forget(self) -> None:
        """Drop what has ended, and what failed long enough ago to be tried again."""
        since_s = time.monotonic() - FAILED_S
        self._all = [
            counter
            for counter in self._all
            if counter.is_running or (counter.error is not None and counter.failed_s > since_s)
        ]

    def _make_room(self, model: str) -> None:
        """End the one that was used longest ago, where there are as many as may be."""
        running = [counter for counter in self._all if counter.is_running]
        if len(running) < MAX_COUNTERS:
            return
        idle = [counter for counter in running if not counter.users]
        if not idle:
            waiting = sum(counter.users for counter in running)
            raise QueueFullError(model=model, waiting=waiting)
        oldest = min(idle, key=lambda counter: counter.used_s)
        assert oldest.task is not None  # noqa: S101 - it runs
        oldest.task.cancel()
        self._all.remove(oldest)

    async def _live(self, counter: Counter) -> None:
        """From its start to its end. Whatever goes wrong with it goes wrong with it alone."""
        try:
            await self._serve(counter)
        except (HostStartError, HostSilentError, _EndedError) as error:
            self._fail(counter, "engine_start_failed", str(error))
        except TimeoutError:
            late = f"its token counter was not ready after {counter.launch.start_timeout_s:.0f} s"
            self._fail(counter, "start_timeout", late)
        except Exception as error:  # a fault of ours must not end the engines
            log.exception("unhandled fault", model=counter.model)
            self._fail(counter, "internal_error", repr(error))

    def _fail(self, counter: Counter, kind: str, reason: str) -> None:
        log.warning("token counter failed", model=counter.model, kind=kind, reason=reason)
        if counter.settled.is_set():  # it counted before, and another will
            return
        node = self._shared.found.hostname
        counter.failed_s = time.monotonic()
        counter.error = LoadFailedError(
            model=counter.model, node=node, load_kind=kind, reason=reason
        )

    async def _serve(self, counter: Counter) -> None:
        launch = counter.launch
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(self._shared.run_dir.open_engine())
            start = _build_start(counter, folder)
            link = Link(f"unix:{start.socket}")
            stack.push_async_callback(link.client.close)
            began_s = time.monotonic()
            host = await self._start(stack, counter)
            await host.tell(start)
            async with asyncio.timeout(launch.start_timeout_s):
                while not isinstance(await _read(host, launch), Ready):
                    pass
            load_s = round(time.monotonic() - began_s, 3)
            log.info("token counter started", model=counter.model, load_s=load_s)
            link.apply_settings(self._shared.traffic.settings, None)
            counter.link = link
            counter.used_s = time.monotonic()
            counter.settled.set()
            try:
                while not self._is_idle(counter):
                    await _read(host, launch)  # it tells that it lives, often enough for this
            finally:
                counter.link = None
                link.close()
        log.info("token counter ended", model=counter.model)

    def _is_idle(self, counter: Counter) -> bool:
        return not counter.users and time.monotonic() - counter.used_s >= self._idle_s

    async def _start(self, stack: AsyncExitStack, counter: Counter) -> HostProcess:
        spare, tasks = counter.launch.spare, self._shared.tasks
        host = self._shared.spares.take(spare) if spare else None
        if host is None:
            name = f"token counter of {counter.model}"
            host = await start_host(
                counter.launch.python, environ(counter.launch.environ), name, tasks
            )
        stack.push_async_callback(host.stop, STOP_S)
        if spare:  # a load that comes now is to find one
            tasks.create_task(self._shared.spares.refill(spare))
        return host

    def close(self) -> None:
        """Start no other, and end those that come up: who waits for one is told at once. Who counts goes on."""
        self._closing = True
        for counter in self._all:
            if not counter.settled.is_set() and counter.task is not None:
                counter.error = ShuttingDownError(daemon="neuron")
                counter.settled.set()
                counter.task.cancel()

    async def stop(self) -> None:
        """End them all, and start no other."""
        self.close()
        tasks = [counter.task for counter in self._all if counter.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _EndedError(Exception):
    """The process has ended, or says why it will."""


def _build_start(counter: Counter, folder: Path) -> Start:
    launch = counter.launch
    return Start(
        spec=counter.spec,
        model_path=launch.model_path,
        socket=str(folder / "http"),
        run_dir=str(folder),
        settings=launch.settings,
        environ=dict(launch.environ),
        counts=True,
    )


async def _read(host: HostProcess, launch: Launch) -> Message:
    """What it says next. Raises HostSilentError and _EndedError."""
    message = await host.read_within(launch.heartbeat_timeout_s)
    if isinstance(message, Failed):
        raise _EndedError(f"{message.message.rstrip('.')}. {message.suggestion}".rstrip())
    if message is None:
        raise _EndedError(await host.why_ended())
    return message
