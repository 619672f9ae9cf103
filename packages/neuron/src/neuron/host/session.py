# SPDX-License-Identifier: GPL-3.0-or-later
"""One engine from its start to its end, inside the host: started, served on its socket, told about."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from cortex_core import logs
from cortex_core.errors import EngineDiedError
from cortex_core.http import server
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Front, Handler
from neuron.host import leash
from neuron.host.engine import Engine, PoisonedError, StartFailedError
from neuron.host.engines import import_engine
from neuron.host.messages import (
    SLEEP_PATH,
    WAKE_PATH,
    Failed,
    Message,
    SleepOrder,
    Start,
    write_line,
)

log = logs.get(__name__)

T = TypeVar("T")

LOOK_EVERY_S = 0.1
# The heartbeat: what a daemon hears of an engine that has nothing to tell.
TELL_EVERY_S = 0.5
# The daemon bounds bodies before they come here.
MAX_BODY_MB = 4096


def send(pipe: int, message: Message) -> None:
    """One line to the daemon. May be called from any thread: a short write is not divided."""
    # Without a daemon there is nobody to tell; the leash ends the host.
    with contextlib.suppress(ConnectionError):
        os.write(pipe, write_line(message))


class Session:
    """Runs one engine.

    Args:
        start: what to run.
        pipe: file descriptor that the daemon reads messages from.
        stdin: file descriptor that closes when the daemon wants the end, or is gone.
        end: ends the process with an exit code. 0: it was to end; 1: it failed, and the daemon was told why.
    """

    def __init__(self, start: Start, pipe: int, stdin: int, end: Callable[[int], NoReturn]) -> None:
        self._start = start
        self._pipe = pipe
        self._stdin = stdin
        self._end = end
        self._exit_code = 0
        # Since the engine's own loop last answered; it need not while weights are moved, which the daemon bounds.
        self._silent_s = 0.0
        self._moving = False

    def tell(self, message: Message) -> None:
        """One line to the daemon. May be called from any thread."""
        send(self._pipe, message)

    async def run(self) -> None:
        """Until the daemon wants the end or is gone, or the engine fails. Then the process ends at once.

        The server is never shut down: it would answer what still runs with an empty 500, where a connection
        that breaks tells the daemon that the engine is gone. (And cancelled while it starts, hypercorn waits
        for ever.)
        """
        stop = asyncio.Event()
        leash.tie(self._stdin, stop)
        leash.note_host(Path(self._start.run_dir))
        engine: Engine | None = None
        async with asyncio.TaskGroup() as tasks:
            try:
                engine = import_engine(self._start.spec.harness, counts=self._start.counts)()
                for watch in (self._tell_activity, self._beat):
                    tasks.create_task(self._watch(watch(engine), stop))
                await self._serve(engine, stop, tasks)
            except StartFailedError as error:
                failed = Failed(kind=error.kind, message=str(error), suggestion=error.suggestion)
                self._fail(failed)
            except Exception as error:  # the outermost layer: the daemon is told what it was
                log.exception("unhandled fault", model=self._start.spec.model_id)
                self._fail(_write_fault(error, "engine_start_failed"))
            try:
                if engine is not None:
                    await engine.stop()
            finally:
                self._end(self._exit_code)

    async def _serve(self, engine: Engine, stop: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        ready = await _unless(stop, engine.start(self._start, self.tell))
        if ready is None:
            return
        hot = {**engine.routes(), **self._control_routes(engine)}
        front = Front(daemon="engine", hot=hot, routes=[], max_body_mb=MAX_BODY_MB)
        sock = server.bind(f"unix:{self._start.socket}")
        tasks.create_task(server.serve(front, sock, asyncio.Event()))
        tasks.create_task(self._watch(self._probe(engine), stop))
        self.tell(ready)
        await stop.wait()

    async def _watch(self, watching: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
        """Watch the engine until that tells of its end; then the host ends too."""
        try:
            await watching
        except EngineDiedError as error:
            self._fail(Failed(kind="engine_died", message=str(error.facts["reason"])))
        except PoisonedError as error:
            poisoned = Failed(kind="engine_poisoned", message=str(error), logits=error.logits)
            self._fail(poisoned)
        except Exception as error:  # raised from here it would cancel the server
            log.exception("unhandled fault", model=self._start.spec.model_id)
            self._fail(_write_fault(error, "engine_died"))
        stop.set()

    async def _tell_activity(self, engine: Engine) -> None:
        """Tell what the engine does: when that changes, and as a heartbeat."""
        told, told_s, looked_s = None, 0.0, time.monotonic()
        while True:
            activity, now_s = engine.activity(), time.monotonic()
            # A look that comes late is this process standing still, with all others of its container.
            self._silent_s += min(now_s - looked_s, TELL_EVERY_S)
            looked_s = now_s
            if activity != told or now_s - told_s >= TELL_EVERY_S:
                silent_s = 0.0 if self._moving else round(self._silent_s, 3)
                self.tell(msgspec.structs.replace(activity, silent_s=silent_s))
                told, told_s = activity, now_s
            await asyncio.sleep(LOOK_EVERY_S)

    async def _beat(self, engine: Engine) -> None:
        while True:
            await engine.beat()
            self._silent_s = 0.0
            await asyncio.sleep(self._start.beat_interval_s)

    async def _probe(self, engine: Engine) -> None:
        while True:
            await asyncio.sleep(self._start.probe_interval_s)
            await engine.probe()

    def _control_routes(self, engine: Engine) -> dict[str, Handler]:
        """What the daemon asks beside inference. No client reaches these: the daemon relays inference alone."""

        async def sleep(exchange: Exchange, body: bytes) -> None:
            level = msgspec.json.decode(body, type=SleepOrder).level
            await self._move(engine.sleep(level))
            await exchange.answer(200, b"{}")

        async def wake(exchange: Exchange, _: bytes) -> None:
            await self._move(engine.wake())
            await exchange.answer(200, b"{}")

        return {SLEEP_PATH: sleep, WAKE_PATH: wake}

    async def _move(self, moving: Coroutine[Any, Any, None]) -> None:
        self._moving = True
        try:
            await moving
        finally:
            self._moving, self._silent_s = False, 0.0

    def _fail(self, failed: Failed) -> None:
        self._exit_code = 1
        self.tell(failed)


def _write_fault(error: Exception, kind: str) -> Failed:
    return Failed(kind=kind, message=f"{type(error).__name__}: {error}")


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work gives; None: it was cancelled, since `stop` was set first."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    both: set[asyncio.Future[Any]] = {working, stopping}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for future in both:
            future.cancel()
        await asyncio.wait(both)
