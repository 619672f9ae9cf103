# SPDX-License-Identifier: GPL-3.0-or-later
"""One model's engine from its load to its end, in as many processes as that takes.

One task is all of it: it starts the host, waits until that serves, hears it until it is lost, and begins again.
Cancelling the task ends the engine. What is known of it is told to the residents.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from cortex_core import logs
from cortex_core.control import ModelSpec
from cortex_core.errors import CortexError, LoadFailedError, LoadRefusedError
from cortex_core.node import ModelStatus
from neuron.harnesses.environment import environ
from neuron.harnesses.failures import failure_error
from neuron.harnesses.run import Launch, Run, Shared
from neuron.host.messages import Activity, Failed, Phase, Ready, Start, Steps
from neuron.host_process import HostProcess, HostSilentError, HostStartError, start_host
from neuron.residents import Failure
from neuron.restarts import Restarts
from neuron.traffic import Link

log = logs.get(__name__)

# An engine is asked whether it lives that often, or eight times while it may be silent: its ranks are busy after each time.
BEAT_EVERY_S = 2.0

PlanLaunch = Callable[[ModelSpec], Awaitable[Launch]]


class Life:
    """Lives one engine's life."""

    def __init__(self, run: Run, plan_launch: PlanLaunch, shared: Shared) -> None:
        self._run = run
        self._spec = run.spec
        self._id = run.spec.model_id
        self._plan_launch = plan_launch
        self._shared = shared
        self._residents = shared.residents
        settings = shared.supervision
        self._restarts = Restarts(settings.max_restarts, settings.restart_window_s)
        # Until the next start; None: there is none.
        self._delay_s: float | None = None
        # How long it has served: losses are counted by that, or one that takes minutes to start would never be too often.
        self._served_s = 0.0

    async def live(self) -> None:
        """Until the engine is given up. Whatever goes wrong with it goes wrong with it alone."""
        while True:
            self._delay_s = None
            try:
                await self._serve(await self._plan_launch(self._spec))
            except (LoadRefusedError, LoadFailedError) as error:
                self._note_refused(error)
            except _FailedError as error:
                self._note_failure(error.failure)
            except Exception as error:  # a fault of ours must not end the other engines
                log.exception("unhandled fault", model=self._id)
                self._note_failure(Failure(kind="internal_error", reason=repr(error)))
            if self._delay_s is None:
                return
            await asyncio.sleep(self._delay_s)
            log.info("engine restarts", model=self._id, waited_s=self._delay_s)

    def note_end(self) -> None:
        """Nothing is left of the engine."""
        status = self._status
        if status is not None and status is not ModelStatus.FAILED:
            if status is not ModelStatus.UNLOADING:
                self._residents.note_unload(self._id)
            self._residents.note_gone(self._id)
            log.info("model unloaded", model=self._id, harness=self._spec.harness)
        ended = Failure(kind="unloaded", reason="it was unloaded while it was loading")
        self._run.settle(self._error(ended))
        if self._shared.runs.get(self._id) is self._run:
            del self._shared.runs[self._id]
        self._residents.forget_failed(self._shared.runs)
        self._run.gone.set()
        self._run.decided.set()

    async def _serve(self, launch: Launch) -> None:
        """One process, from its start to its end."""
        self._residents.note_place(self._id, launch.devices, launch.claims_mb)
        self._run.launch = launch
        self._run.planned.set()
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(self._shared.run_dir.open_engine())
            start = self._build_start(launch, folder)
            link = Link(f"unix:{start.socket}")
            # Before the host, so after its end: closing a connection does not wake who reads from it.
            stack.push_async_callback(link.client.close)
            self._residents.note_phase(self._id, Phase(phase="waiting"))
            async with self._shared.starting_on(launch.devices):
                host = await self._open(stack, start, launch)
                ready = await self._until_ready(host, launch)
            await self._serve_ready(host, launch, link, ready)

    async def _serve_ready(
        self, host: HostProcess, launch: Launch, link: Link, ready: Ready
    ) -> None:
        if self._status is ModelStatus.UNLOADING:
            return
        host.note_shared_memory()
        began_s = time.monotonic()
        self._shared.traffic.note_open(self._id, link, ready.max_running)
        try:
            self._note_ready(launch, ready)
            failure = await self._until_lost(host, launch.heartbeat_timeout_s)
            self._served_s += time.monotonic() - began_s
            self._note_failure(failure)
        finally:
            self._shared.traffic.note_gone(self._id)
        # Whatever it still does, nobody wants; its requests are told by their connections breaking.
        host.kill_group()

    async def _open(self, stack: AsyncExitStack, start: Start, launch: Launch) -> HostProcess:
        self._residents.note_phase(self._id, Phase(phase="starting"))
        host = self._shared.spares.take(launch.spare) if launch.spare else None
        try:
            if host is None:
                tasks = self._shared.tasks
                host = await start_host(launch.python, environ(launch.environ), self._id, tasks)
        except HostStartError as error:
            raise _FailedError("engine_start_failed", str(error)) from None
        stack.push_async_callback(self._close, host, launch.stop_timeout_s)
        self._run.host = host
        self._residents.note_host(self._id, host.pid)
        await host.tell(start)
        return host

    async def _close(self, host: HostProcess, within_s: float) -> None:
        self._run.host = None
        await host.stop(within_s)

    async def _until_ready(self, host: HostProcess, launch: Launch) -> Ready:
        try:
            async with asyncio.timeout(launch.start_timeout_s):
                while True:
                    message = await host.read_within(launch.heartbeat_timeout_s)
                    if isinstance(message, Ready):
                        return message
                    if isinstance(message, Phase):
                        self._residents.note_phase(self._id, message)
                    elif isinstance(message, Failed):
                        raise _FailedError(message.kind, message.message, message.suggestion)
                    elif message is None:
                        raise _FailedError("engine_start_failed", await host.why_ended())
        except HostSilentError as error:
            host.kill_group()
            raise _FailedError("start_hung", str(error)) from None
        except TimeoutError:
            waited = f"it was not ready after {launch.start_timeout_s:.0f} s"
            raise _FailedError("start_timeout", waited) from None

    async def _until_lost(self, host: HostProcess, timeout_s: float) -> Failure:
        """Hear an engine that serves, until it does not. Even exit code 0 is a failure: nobody asked for it."""
        try:
            while (message := await host.read_within(timeout_s)) is not None:
                if isinstance(message, Activity):
                    self._residents.note_activity(self._id, message)
                elif isinstance(message, Steps):
                    self._log_steps(message)
                elif isinstance(message, Failed):
                    return self._read_failed(message)
        except HostSilentError as error:
            return Failure(kind="engine_hung", reason=str(error))
        return self._run.doom or Failure(kind="engine_died", reason=await host.why_ended())

    def _log_steps(self, steps: Steps) -> None:
        for rank, left_mb in enumerate(steps.free_mb):
            for free_mb in left_mb:
                log.debug("step", model=self._id, rank=rank, vram_free_mb=free_mb)

    def _read_failed(self, message: Failed) -> Failure:
        for step in message.logits:
            log.warning("logits unsound", model=self._id, **step)
        return Failure(kind=message.kind, reason=message.message)

    def _note_ready(self, launch: Launch, ready: Ready) -> None:
        now_s = time.monotonic()
        load_s = self._residents.note_ready(self._id, ready, now_s, int(time.time()))
        self._shared.metrics.note_load(self._spec.harness, load_s)
        for rank in ready.ranks:
            log.info("engine constructed", model=self._id, **rank)
        log.info(
            "model loaded", model=self._id, harness=self._spec.harness, load_s=round(load_s, 3)
        )
        self._settle(None)

    def _note_refused(self, error: LoadRefusedError | LoadFailedError) -> None:
        """It cannot be started. Where it served before, that is one more failure to come up.

        Who was told that it is on its way finds it failed, with the reason; else it was never here.
        """
        facts = error.facts
        failure = Failure(
            kind=str(facts["load_kind"]),
            reason=str(facts["reason"]),
            suggestion=str(facts.get("suggestion", "")),
        )
        if self._status is ModelStatus.RECOVERING:
            self._note_failure(failure)
            return
        if self._status is ModelStatus.LOADING and self._run.planned.is_set():
            self._residents.note_failed(self._id, failure)
        elif self._status is ModelStatus.LOADING:
            self._residents.note_refused(self._id)
        self._settle(error)

    def _note_failure(self, failure: Failure) -> None:
        """It did not come up, or was lost; what happens next is decided here, at once."""
        status = self._status
        if status in (None, ModelStatus.UNLOADING, ModelStatus.FAILED):
            return  # it was to go, or that is known
        served = self._residents.has_served(self._id)
        self._shared.metrics.note_failure(self._id)
        log.error("engine failed", model=self._id, kind=failure.kind, reason=failure.reason)
        self._run.doom = None
        # A sleeper is missed by nobody, but for one that has not sent its requests away yet.
        if not served or self._residents.is_asleep(self._id):
            self._give_up(failure)
            return
        now_s = time.monotonic()
        self._delay_s = self._restarts.note_loss(self._served_s)
        if self._delay_s is None:
            self._give_up(self._restarts_exhausted(failure))
            return
        self._residents.note_lost(self._id, failure, now_s)
        if self._run.settled.is_set():
            self._run.reopen()

    def _restarts_exhausted(self, failure: Failure) -> Failure:
        often, window_s = self._restarts.most + 1, self._restarts.window_s
        return Failure(
            kind="restarts_exhausted",
            reason=f"it was lost {often} times within {window_s:.0f} s of service, the last time since {failure.reason}",
            suggestion="Load it again when the cause is mended.",
        )

    def _give_up(self, failure: Failure) -> None:
        self._residents.note_failed(self._id, failure)
        self._settle(self._error(failure))

    def _settle(self, error: CortexError | None) -> None:
        """Tell who waits; then, with nobody waiting, have the next spare ready."""
        self._run.settle(error)
        launch = self._run.launch
        if launch is not None and launch.spare is not None:
            self._shared.tasks.create_task(self._shared.spares.refill(launch.spare))

    def _build_start(self, launch: Launch, folder: Path) -> Start:
        return Start(
            spec=msgspec.structs.replace(self._spec, tensor_parallel=launch.ranks),
            model_path=launch.model_path,
            socket=str(folder / "http"),
            run_dir=str(folder),
            settings=launch.settings,
            environ=dict(launch.environ),
            beat_interval_s=min(BEAT_EVERY_S, launch.heartbeat_timeout_s / 8),
            probe_interval_s=self._shared.supervision.probe_interval_s,
            traces=self._shared.traces,
        )

    def _error(self, failure: Failure) -> CortexError:
        return failure_error(self._id, self._shared.found.hostname, failure)

    @property
    def _status(self) -> ModelStatus | None:
        return self._shared.status(self._run)


class _FailedError(Exception):
    """An engine that did not come up."""

    def __init__(self, kind: str, reason: str, suggestion: str = "") -> None:
        super().__init__(reason)
        self.failure = Failure(kind=kind, reason=reason, suggestion=suggestion)
