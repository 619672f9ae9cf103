# SPDX-License-Identifier: GPL-3.0-or-later
"""A harness whose engines run in host processes: load, supervise, unload. What kinds differ in is `plan_launch`.

One task per engine is its whole life: it starts the host, waits until it serves, hears it until it ends.
Cancelling the task ends the engine. What is known of it is told to the residents.
"""

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from cortex_core import logs
from cortex_core.control import ModelSpec, spec_differences
from cortex_core.errors import (
    CortexError,
    LoadRefusedError,
    ModelNotFoundError,
    ShuttingDownError,
    SpecConflictError,
    WaitTimeoutError,
)
from cortex_core.node import ModelActivity, ModelState, ModelStatus
from neuron import notify
from neuron.harnesses.failures import failure_error
from neuron.harnesses.run import Launch, Run, Shared
from neuron.harnesses.specs import check_spec
from neuron.host.messages import Activity, Failed, Phase, Ready, Start
from neuron.host_process import HostProcess, HostStartError, open_host
from neuron.residents import Failure, Resident
from neuron.traffic import Link

log = logs.get(__name__)


class Hosted(ABC):
    """Fulfils `cortex_core.harness.Harness` by host processes."""

    name = ""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._residents = shared.residents
        self._closing = False

    @abstractmethod
    async def plan_launch(self, spec: ModelSpec) -> Launch:
        """Decide how an engine for the spec is started, before any device is touched.

        Raises:
            LoadRefusedError: the spec cannot work here.
        """

    async def start(self) -> None:  # noqa: B027 - most have nothing to do: engines start with their loads
        pass

    def close(self) -> None:
        """Take no more loads, and end those under way: who waits for one is told at once."""
        self._closing = True
        for run in self._own_runs():
            if not run.settled.is_set():
                run.settle(ShuttingDownError(daemon="neuron"))
                run.end()

    async def stop(self) -> None:
        self.close()
        runs = self._own_runs()
        for run in runs:
            run.end()
        await asyncio.gather(*(run.gone.wait() for run in runs))

    def health(self) -> list[ModelActivity]:
        return [self._residents.activity(resident) for resident in self._own()]

    def models(self) -> Mapping[str, ModelState]:
        now_s = time.monotonic()
        return {r.id: self._residents.state(r, now_s) for r in self._own()}

    def endpoint(self, model_id: str) -> str | None:
        resident = self._residents.find(model_id)
        if resident is None or resident.status is not ModelStatus.LOADED:
            return None
        link = self._shared.traffic.find(resident.id)
        return link.endpoint if link else None

    async def load(self, spec: ModelSpec, *, wait: bool = True) -> ModelState:
        check_spec(spec)
        run = await self._ensure_run(spec)
        await (run.settled if wait else run.planned).wait()
        if run.error is not None:
            # One error for all who wait: without this each would add its own frames to the traceback.
            raise run.error.with_traceback(None)
        resident = self._residents.find(run.spec.model_id)
        if resident is None:  # unloaded between its coming up and this line
            raise ModelNotFoundError(model=spec.model_id)
        return self._residents.state(resident, time.monotonic())

    async def unload(self, model_id: str, *, force: bool = False) -> bool:
        resident = self._residents.find(model_id)
        if resident is None:
            return False
        if resident.status is not ModelStatus.UNLOADING:
            self._residents.note_unload(resident.id)
        run = self._shared.runs.get(resident.id)
        if run is None:  # it had failed, and all of it has ended
            self._residents.note_gone(resident.id)
            return True
        if not force:
            await self._drain(run)
        run.end()
        await run.gone.wait()
        return True

    async def _drain(self, run: Run) -> None:
        """Let running requests end.

        Raises:
            WaitTimeoutError: they did not; the model stays.
        """
        model_id, drain_s = run.spec.model_id, self._shared.drain_s
        link = self._shared.traffic.find(model_id)
        drained = link is None or await link.drained(drain_s)
        if run.gone.is_set():
            return
        # Another caller, who waited as long, may have given up and kept it: then it is in use again.
        status = self._status(run)
        if status is ModelStatus.UNLOADING and not drained:
            self._residents.note_kept(model_id)
        if status is not ModelStatus.UNLOADING or not drained:
            raise WaitTimeoutError(model=model_id, waited_s=drain_s, what="its requests to end")

    async def _ensure_run(self, spec: ModelSpec) -> Run:
        """The run that brings the spec up: the one under way, or a new one.

        Asks again after each wait, since another caller may have been first.
        """
        while not self._closing:
            resident = self._residents.find(spec.model_id)
            run = self._shared.runs.get(resident.id) if resident else None
            if (
                resident is None or run is None
            ):  # not here, or it had failed and all of it has ended
                return self._begin(spec)
            if resident.status in (ModelStatus.FAILED, ModelStatus.UNLOADING):
                await run.gone.wait()
            elif differs := spec_differences(spec, resident.spec):
                raise SpecConflictError(model=resident.id, differs=", ".join(differs))
            else:
                return run
        raise ShuttingDownError(daemon="neuron")

    def _begin(self, spec: ModelSpec) -> Run:
        run = self._shared.runs[spec.model_id] = Run(spec)
        self._residents.note_load(spec, time.monotonic())
        run.task = self._shared.tasks.create_task(self._live(run))
        # Not in a `finally` of the task: one that is cancelled before its first step never gets there.
        run.task.add_done_callback(lambda _: self._note_end(run))
        return run

    def _note_end(self, run: Run) -> None:
        """Nothing is left of the engine."""
        status = self._status(run)
        if status is not None and status is not ModelStatus.FAILED:
            if status is not ModelStatus.UNLOADING:
                self._residents.note_unload(run.spec.model_id)
            self._residents.note_gone(run.spec.model_id)
            log.info("model unloaded", model=run.spec.model_id, harness=self.name)
        ended = Failure(kind="unloaded", reason="it was unloaded while it was loading")
        run.settle(self._error(run, ended))
        del self._shared.runs[run.spec.model_id]
        run.gone.set()

    async def _live(self, run: Run) -> None:
        """An engine from its load to its end. Whatever goes wrong with it goes wrong with it alone."""
        try:
            await self._serve(run, await self.plan_launch(run.spec))
        except LoadRefusedError as error:
            if self._status(run) is ModelStatus.LOADING:
                self._residents.note_refused(run.spec.model_id)
            run.settle(error)
        except _FailedError as error:
            self._note_failed(run, error.failure)
        except Exception as error:  # a fault of ours must not end the other engines
            log.exception("unhandled fault", model=run.spec.model_id)
            self._note_failed(run, Failure(kind="internal_error", reason=repr(error)))

    async def _serve(self, run: Run, launch: Launch) -> None:
        model_id = run.spec.model_id
        self._residents.note_place(model_id, launch.devices, launch.claims_mb)
        run.planned.set()
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(self._shared.run_dir.open_engine())
            start = _build_start(run.spec, launch, folder)
            link = Link(f"unix:{start.socket}")
            # Before the host, so after its end: closing a connection does not wake who reads from it.
            stack.push_async_callback(link.client.close)
            self._residents.note_phase(model_id, Phase(phase="waiting"))
            async with self._shared.starting_on(launch.devices):
                host = await self._open(stack, start, launch)
                self._residents.note_host(model_id, host.pid)
                ready = await self._until_ready(run, host, launch.start_timeout_s)
            self._shared.traffic.note_open(model_id, link)
            stack.callback(self._shared.traffic.note_gone, model_id)
            self._note_ready(run, ready)
            self._note_failed(run, await self._until_ended(run, host))

    async def _open(self, stack: AsyncExitStack, start: Start, launch: Launch) -> HostProcess:
        self._residents.note_phase(start.spec.model_id, Phase(phase="starting"))
        opening = open_host(
            launch.python,
            start,
            _environ(launch.environ),
            stop_within_s=launch.stop_timeout_s,
            tasks=self._shared.tasks,
        )
        try:
            return await stack.enter_async_context(opening)
        except HostStartError as error:
            raise _FailedError("engine_start_failed", str(error)) from None

    async def _until_ready(self, run: Run, host: HostProcess, within_s: float) -> Ready:
        try:
            async with asyncio.timeout(within_s):
                while True:
                    message = await host.read()
                    if isinstance(message, Ready):
                        return message
                    if isinstance(message, Phase):
                        self._residents.note_phase(run.spec.model_id, message)
                    elif isinstance(message, Failed):
                        raise _FailedError(message.kind, message.message, message.suggestion)
                    elif message is None:
                        raise _FailedError("engine_start_failed", await host.why_ended())
        except TimeoutError:
            raise _FailedError(
                "start_timeout", f"it was not ready after {within_s:.0f} s"
            ) from None

    async def _until_ended(self, run: Run, host: HostProcess) -> Failure:
        """Hear an engine that serves, until it does not. Even exit code 0 is a failure: nobody asked for it."""
        while (message := await host.read()) is not None:
            if isinstance(message, Activity):
                self._residents.note_activity(run.spec.model_id, message)
            elif isinstance(message, Failed):
                return Failure(kind="engine_died", reason=message.message)
        return Failure(kind="engine_died", reason=await host.why_ended())

    def _note_ready(self, run: Run, ready: Ready) -> None:
        model_id = run.spec.model_id
        load_s = self._residents.note_ready(model_id, ready, time.monotonic(), int(time.time()))
        self._shared.metrics.note_load(self.name, load_s)
        for rank in ready.ranks:
            log.info("engine constructed", model=model_id, **rank)
        log.info("model loaded", model=model_id, harness=self.name, load_s=round(load_s, 3))
        run.settle()

    def _note_failed(self, run: Run, failure: Failure) -> None:
        # Where it was to go anyway, its end is no failure.
        if self._status(run) not in (ModelStatus.LOADING, ModelStatus.LOADED):
            return
        model_id = run.spec.model_id
        self._residents.note_failed(model_id, failure)
        self._shared.metrics.note_failure(model_id)
        log.error("engine failed", model=model_id, kind=failure.kind, reason=failure.reason)
        run.settle(self._error(run, failure))

    def _error(self, run: Run, failure: Failure) -> CortexError:
        return failure_error(run.spec.model_id, self._shared.found.hostname, failure)

    def _status(self, run: Run) -> ModelStatus | None:
        resident = self._residents.get(run.spec.model_id)
        return resident.status if resident else None

    def _own(self) -> list[Resident]:
        return [r for r in self._residents.all() if r.spec.harness == self.name]

    def _own_runs(self) -> list[Run]:
        return [run for run in self._shared.runs.values() if run.spec.harness == self.name]


class _FailedError(Exception):
    """An engine that did not come up."""

    def __init__(self, kind: str, reason: str, suggestion: str = "") -> None:
        super().__init__(reason)
        self.failure = Failure(kind=kind, reason=reason, suggestion=suggestion)


def _build_start(spec: ModelSpec, launch: Launch, folder: Path) -> Start:
    return Start(
        spec=spec,
        model_path=launch.model_path,
        socket=str(folder / "http"),
        run_dir=str(folder),
        settings=launch.settings,
    )


def _environ(changes: Mapping[str, str | None]) -> dict[str, str]:
    # The socket to the service manager is the daemon's alone.
    environ = {**os.environ, notify.VARIABLE: None, **changes}
    return {name: value for name, value in environ.items() if value is not None}
