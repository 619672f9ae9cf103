# SPDX-License-Identifier: GPL-3.0-or-later
"""A harness whose engines run in host processes: load, unload, sleep, wake. What kinds differ in is `plan_launch`.

`life` is what one engine goes through, `ladder` what lies between serving and gone.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

from cortex_core import logs
from cortex_core.control import ModelSpec, PlanAnswer
from cortex_core.errors import (
    CortexError,
    ModelNotFoundError,
    ShuttingDownError,
    SpecConflictError,
    WaitTimeoutError,
)
from cortex_core.node import ModelActivity, ModelState, ModelStatus
from neuron.harnesses.failures import failure_error
from neuron.harnesses.freeing import freed_too_little, undisturbed
from neuron.harnesses.ladder import Ladder
from neuron.harnesses.life import Life
from neuron.harnesses.run import Launch, Run, Shared
from neuron.harnesses.specs import check_spec, conflicts
from neuron.residents import Failure, Resident

log = logs.get(__name__)


class Hosted(ABC):
    """Fulfils `cortex_core.harness.Harness` by host processes."""

    name = ""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._residents = shared.residents
        self._closing = False
        self._ladder = Ladder(shared, lambda model_id: self.unload(model_id, force=True))

    @abstractmethod
    async def plan_launch(self, spec: ModelSpec) -> Launch:
        """Decide how an engine for the spec is started, before any device is touched.

        Raises:
            LoadRefusedError: the spec cannot work here.
        """

    @abstractmethod
    async def plan_count(self, spec: ModelSpec) -> Launch:
        """Decide how a process is started that only counts tokens for the spec. Nothing is fetched.

        Raises:
            LoadRefusedError: the spec cannot work here, or its files are not here (`repo_fetch_failed`).
        """

    @abstractmethod
    async def plan(self, spec: ModelSpec, *, vram_mb: int | None = None) -> PlanAnswer:
        pass

    async def start(self) -> None:  # noqa: B027 - most have nothing to do: engines start with their loads
        pass

    def close(self) -> None:
        """Take no more loads, and end those under way: who waits for one is told at once."""
        self._closing = True
        self._ladder.close()
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
        await self._shared.spares.stop()

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
        if self._shared.status(run) is ModelStatus.SLEEPING:
            self._ladder.begin_wake(run)
        await (run.settled if wait else run.planned).wait()
        return self._outcome(run)

    def _outcome(self, run: Run) -> ModelState:
        if run.error is not None:
            # One error for all who wait: without this each would add its own frames to the traceback.
            raise run.error.with_traceback(None)
        resident = self._residents.find(run.spec.model_id)
        if resident is None:  # unloaded between its coming up and this line
            raise ModelNotFoundError(model=run.spec.model_id)
        return self._residents.state(resident, time.monotonic())

    async def sleep(self, model_id: str, *, force: bool = False) -> bool:
        return await self._ladder.sleep(self._find_run(model_id), force=force)

    async def wake(self, model_id: str) -> bool:
        run = self._find_run(model_id)
        if self._shared.status(run) is ModelStatus.LOADED:
            return False
        if self._shared.status(run) is ModelStatus.UNLOADING:
            raise ModelNotFoundError(model=model_id)
        if self._shared.status(run) is ModelStatus.SLEEPING:
            self._ladder.begin_wake(run)
        await run.settled.wait()
        self._outcome(run)
        return True

    def _find_run(self, model_id: str) -> Run:
        resident = self._residents.find(model_id)
        run = self._shared.runs.get(resident.id) if resident else None
        if run is None:
            raise ModelNotFoundError(model=model_id)
        return run

    async def unload(self, model_id: str, *, force: bool = False) -> bool:
        resident = self._residents.find(model_id)
        if resident is None:
            return False
        run = self._shared.runs.get(resident.id)
        if resident.status is not ModelStatus.UNLOADING:
            self._residents.note_unload(resident.id)
            if run is not None:
                run.decided.clear()
        if run is None:  # it had failed, and all of it has ended
            self._residents.note_gone(resident.id)
            return True
        if not force:
            await self._drain(run)
        began_s = time.monotonic()
        await self._end(run)
        unload_s = time.monotonic() - began_s
        self._shared.metrics.note_move("unload", unload_s)
        self._shared.costs.note_unload(resident.id, unload_s)
        return True

    async def reload(self, model_id: str, *, force: bool = False) -> bool:
        run = self._find_run(model_id)
        if self._shared.status(run) is not ModelStatus.LOADED:
            return False
        reloading = self._shared.tasks.create_task(self._reload(run.spec, force=force))
        failed = await asyncio.shield(reloading)
        if failed is not None:
            raise failed
        return True

    async def _reload(self, spec: ModelSpec, *, force: bool) -> CortexError | None:
        """What was the matter, rather than raised: the daemon must not fail of it, and its caller may have left."""
        try:
            await self.unload(spec.model_id, force=force)
            self._shared.costs.note_reload()
            await self.load(spec)
        except CortexError as error:
            log.warning("model not reloaded", model=spec.model_id, reason=error.message)
            return error
        except Exception as error:  # a fault of ours must not end the other engines
            log.exception("unhandled fault", model=spec.model_id)
            fault = Failure(kind="internal_error", reason=repr(error))
            return failure_error(spec.model_id, self._shared.found.hostname, fault)
        return None

    async def _end(self, run: Run) -> None:
        """End its engine, and see that the devices have back what it had."""
        resident = self._residents.get(run.spec.model_id)
        has_all = run.settled.is_set() and run.error is None and not run.gone.is_set()
        claims_mb = dict(resident.claims_mb) if resident and has_all else {}
        starts = self._shared.starts_on(claims_mb)
        before_mb = await self._shared.measuring.free_mb() if claims_mb else {}
        run.end()
        await run.gone.wait()
        after_mb = await self._shared.measuring.free_mb() if claims_mb else {}
        alone_mb = undisturbed(claims_mb, starts, self._shared.starts_on(claims_mb))
        if too_little := freed_too_little(alone_mb, before_mb, after_mb):
            self._shared.metrics.note_leak()
            log.warning("memory not freed", model=run.spec.model_id, reason=too_little)

    async def _drain(self, run: Run) -> None:
        """Let running requests end.

        Raises:
            WaitTimeoutError: they did not; the model stays.
        """
        model_id, drain_s = run.spec.model_id, self._shared.drain_s
        link = self._shared.traffic.find(model_id)
        drained = link is None or await link.drained(drain_s)
        if run.gone.is_set() or self._shared.traffic.find(model_id) is not link:
            return  # its engine went by itself
        # Another caller, who waited as long, may have given up and kept it: then it is in use again.
        status = self._shared.status(run)
        if status is ModelStatus.UNLOADING and not drained:
            self._residents.note_kept(model_id)
            run.decided.set()
            run.settle()
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
            if resident.status is ModelStatus.FAILED:
                await run.gone.wait()
            elif resident.status is ModelStatus.UNLOADING:
                await run.decided.wait()
            elif differs := self._conflicts(spec, resident):
                raise SpecConflictError(model=resident.id, differs=", ".join(differs))
            else:
                return run
        raise ShuttingDownError(daemon="neuron")

    def _conflicts(self, asked: ModelSpec, there: Resident) -> list[str]:
        """The fields by which a resident model is not what is asked for."""
        decided: dict[str, object] = {}
        if there.ready is not None:
            decided["max_model_len"] = there.ready.limits.context
        run = self._shared.runs.get(there.id)
        if run is not None and run.launch is not None:
            decided |= {"tensor_parallel": run.launch.ranks, "devices": run.launch.devices}
        return conflicts(asked, there.spec, decided)

    def _begin(self, spec: ModelSpec) -> Run:
        run = self._shared.runs[spec.model_id] = Run(spec)
        self._residents.note_load(spec, time.monotonic())
        life = Life(run, self.plan_launch, self._shared)
        run.task = self._shared.tasks.create_task(life.live())
        # Not in a `finally` of the task: one that is cancelled before its first step never gets there.
        run.task.add_done_callback(lambda _: life.note_end())
        return run

    def _own(self) -> list[Resident]:
        return [r for r in self._residents.all() if r.spec.harness == self.name]

    def _own_runs(self) -> list[Run]:
        return [run for run in self._shared.runs.values() if run.spec.harness == self.name]
