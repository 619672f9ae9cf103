# SPDX-License-Identifier: GPL-3.0-or-later
"""The rungs between serving and gone: a model is put to sleep, and woken.

What does not work is made up for by the rung below: a model that cannot be put to sleep is unloaded, one that
does not wake is started anew.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

import msgspec

from cortex_core import logs
from cortex_core.errors import (
    CannotSleepError,
    CortexError,
    InsufficientVramError,
    ModelLoadingError,
    ModelNotFoundError,
    ModelRecoveringError,
    WaitTimeoutError,
)
from cortex_core.http.client import read_all
from cortex_core.node import ModelStatus
from neuron.harnesses.freeing import freed_too_little
from neuron.harnesses.run import Run, Shared
from neuron.host.messages import SLEEP_PATH, WAKE_PATH, SleepOrder
from neuron.residents import Failure, Resident
from neuron.traffic import Link

log = logs.get(__name__)

_ENCODE = msgspec.json.Encoder()

# Weights of hundreds of GiB are copied, or read from their files, in this time. While they move an engine's heartbeat
# says nothing, so that one which hangs is told by this alone: it is shortened to so many times what the same took last.
MOVE_S = 300.0
MOVE_TIMES = 10
MOVE_LEAST_S = 30.0
# A model may be put to sleep so that a sleeper can wake: who is one too many is unloaded when this has passed.
SETTLE_S = 10.0
# Host memory that stays free beside the weights of a sleeping model.
HOST_RESERVE_MB = 2048


def choose_level(weights_mb: int, free_mb: int | None) -> int:
    """How deep a model sleeps: 1 where its weights fit into what is free of the host's memory, beside a reserve; else 2.

    On 2 they are dropped, and read from their files again. `free_mb` None: not known, and taken for enough.
    """
    return 2 if free_mb is not None and free_mb < weights_mb + HOST_RESERVE_MB else 1


class Ladder:
    """Moves the models of one harness.

    Args:
        shared: what all harnesses share.
        unload: takes a model down, whatever it does.
    """

    def __init__(self, shared: Shared, unload: Callable[[str], Awaitable[object]]) -> None:
        self._shared = shared
        self._residents = shared.residents
        self._unload = unload
        self._copied_mb: dict[str, int] = {}
        self._settle_s = SETTLE_S
        self._move_least_s = MOVE_LEAST_S
        self._settling: list[asyncio.TimerHandle] = []
        self._closed = False

    def close(self) -> None:
        """The daemon stops: nobody makes room any more."""
        self._closed = True
        for timer in self._settling:
            timer.cancel()

    async def sleep(self, run: Run, *, force: bool) -> bool:
        """Put a model to sleep, or unload it where it does not; False: it sleeps already.

        Raises:
            CannotSleepError, ModelLoadingError, ModelNotFoundError: as it is, it cannot.
            ModelRecoveringError: its engine was lost before it slept, and is started again.
            WaitTimeoutError: its requests did not end; it serves on.
        """
        model_id = run.spec.model_id
        if force and self._drains(run):  # for somebody more patient
            await self._unload(model_id)
            return True
        async with run.moving:
            resident = self._residents.get(model_id)
            if resident is not None and resident.status is ModelStatus.SLEEPING:
                return False
            link = self._check_sleep(model_id, resident)
            self._residents.note_slept(model_id, time.monotonic())
            await self._drain(run, link, force=force)
            status = self._shared.status(run)
            if status is ModelStatus.RECOVERING:
                raise ModelRecoveringError(model=model_id)
            if status is ModelStatus.SLEEPING:
                self._residents.note_drained(model_id)
                await self._fall_asleep(run, link)
        self._settle_later()
        return True

    def _drains(self, run: Run) -> bool:
        """Whether it is to sleep, and still has requests."""
        link = self._shared.traffic.find(run.spec.model_id)
        is_to_sleep = self._shared.status(run) is ModelStatus.SLEEPING
        return is_to_sleep and link is not None and link.admission.running > 0

    def _check_sleep(self, model_id: str, resident: Resident | None) -> Link:
        link = self._shared.traffic.find(model_id)
        if resident is None or resident.status is ModelStatus.UNLOADING:
            raise ModelNotFoundError(model=model_id)
        if resident.status is not ModelStatus.LOADED or link is None:
            raise ModelLoadingError(model=model_id, node=self._shared.found.hostname)
        if resident.ready is None or not resident.ready.can_sleep:
            raise CannotSleepError(model=model_id, harness=resident.spec.harness)
        return link

    async def _drain(self, run: Run, link: Link, *, force: bool) -> None:
        drain_s = 0.0 if force else self._shared.drain_s
        if await link.drained(drain_s, counts=False):
            return
        if (
            self._shared.status(run) is not ModelStatus.SLEEPING
        ):  # it was lost, or is being unloaded
            return
        if force:
            await self._unload(run.spec.model_id)
            return
        self._residents.note_kept(run.spec.model_id)
        raise WaitTimeoutError(
            model=run.spec.model_id, waited_s=drain_s, what="its requests to end"
        )

    async def _fall_asleep(self, run: Run, link: Link) -> None:
        model_id = run.spec.model_id
        devices = run.launch.devices if run.launch else []
        claims_mb = dict(run.launch.claims_mb) if run.launch else {}
        try:
            async with self._shared.starting_on(devices):
                before_mb = await self._shared.measuring.free_mb()
                if self._shared.status(run) is not ModelStatus.SLEEPING:
                    return
                began_s = time.monotonic()
                run.sleep_level = self._level(run)
                order = _ENCODE.encode(SleepOrder(level=run.sleep_level))
                within_s = self._within_s(run, self._residents.costs.find(model_id).sleep_s)
                with self._copying(run):
                    await _ask(link, SLEEP_PATH, order, within_s)
                if self._shared.status(run) is not ModelStatus.SLEEPING:
                    return
                self._residents.note_asleep(model_id)
                after_mb = await self._shared.measuring.free_mb()
            if too_little := freed_too_little(claims_mb, before_mb, after_mb):
                self._shared.metrics.note_leak()
                raise _MoveError(too_little)
        except (CortexError, _MoveError) as error:
            if self._shared.status(run) is ModelStatus.SLEEPING:
                log.warning("model did not sleep", model=model_id, reason=str(error))
                await self._unload(model_id)
            return
        sleep_s = time.monotonic() - began_s
        self._shared.metrics.note_move("sleep", sleep_s)
        self._shared.costs.note_sleep(model_id, sleep_s)
        log.info("model sleeps", model=model_id, sleep_s=round(sleep_s, 3))

    def _level(self, run: Run) -> int:
        free_mb = self._shared.measuring.host_ram_free_mb
        if free_mb is not None:
            free_mb -= sum(self._copied_mb.values())
        return choose_level(_weights_mb(run), free_mb)

    @contextlib.contextmanager
    def _copying(self, run: Run) -> Iterator[None]:
        """Host memory that weights are on their way to is nobody else's, on whichever device they are."""
        if run.sleep_level == 1:
            self._copied_mb[run.spec.model_id] = _weights_mb(run)
        try:
            yield
        finally:
            self._copied_mb.pop(run.spec.model_id, None)

    def _within_s(self, run: Run, last_s: float | None) -> float:
        """How long a move may take that took `last_s` when it was last done. Level 2 reads files, which may be on a slow disk."""
        if last_s is None or run.sleep_level == 2:
            return MOVE_S
        return min(max(MOVE_TIMES * last_s, self._move_least_s), MOVE_S)

    def _settle_later(self) -> None:
        """By a timer of its own for each sleep, with those who slept by then: later sleeps do not put it off."""
        if self._closed:
            return
        asleep = frozenset(r.id for r in self._residents.all() if r.status is ModelStatus.SLEEPING)
        loop = asyncio.get_running_loop()
        ahead = [timer for timer in self._settling if timer.when() > loop.time()]
        self._settling = [*ahead, loop.call_later(self._settle_s, self._settle, asleep)]

    def _settle(self, asleep: Collection[str]) -> None:
        self._shared.tasks.create_task(self._keep_few_asleep(asleep))

    async def _keep_few_asleep(self, among: Collection[str]) -> None:
        """Unload who sleeps longest on a device that has too many sleepers, of those named."""
        try:
            for _ in among:
                if (surplus := self._find_surplus(among)) is None:
                    return
                log.info("sleeper makes room", model=surplus.id, devices=surplus.devices)
                await self._unload(surplus.id)
        except Exception:  # a fault of ours must not end the other engines
            log.exception("unhandled fault")

    def _find_surplus(self, among: Collection[str]) -> Resident | None:
        residents = [r for r in self._residents.all() if r.id in among and not self._wakes(r)]
        for device in {index for resident in residents for index in resident.devices}:
            sleepers = [resident for resident in residents if _sleeps_on(resident, device)]
            if len(sleepers) > self._shared.max_sleeping:
                return min(sleepers, key=lambda resident: resident.began_s)
        return None

    def _wakes(self, resident: Resident) -> bool:
        """Whether somebody waits for it: it still says that it sleeps while it looks for room."""
        run = self._shared.runs.get(resident.id)
        return run is None or not run.settled.is_set()

    def begin_wake(self, run: Run) -> None:
        """Wake a sleeping model, or one that is falling asleep; `run.settled` tells how that went."""
        if run.settled.is_set():
            run.reopen()
        self._shared.tasks.create_task(self._wake_guarded(run))

    async def _wake_guarded(self, run: Run) -> None:
        try:
            await self._wake(run)
        except Exception as error:  # a fault of ours must not end the other engines
            log.exception("unhandled fault", model=run.spec.model_id)
            if self._shared.status(run) in (ModelStatus.SLEEPING, ModelStatus.LOADING):
                run.lose(Failure(kind="wake_failed", reason=repr(error)))

    async def _wake(self, run: Run) -> None:
        async with run.moving:
            link = self._shared.traffic.find(run.spec.model_id)
            status = self._shared.status(run)
            if status is ModelStatus.SLEEPING and link is not None and run.launch is not None:
                await self._wake_up(run, link, run.launch.devices, run.launch.claims_mb)
            elif status is ModelStatus.LOADED:  # it was woken, or did not fall asleep
                run.settle()

    async def _wake_up(
        self, run: Run, link: Link, devices: list[int], claims_mb: Mapping[int, int]
    ) -> None:
        model_id = run.spec.model_id
        await self._shared.measuring.measure()
        if self._shared.status(run) is not ModelStatus.SLEEPING:
            return
        if missing_mb := self._shared.measuring.lacking_mb(model_id, claims_mb):
            run.settle(InsufficientVramError(model=model_id, reason=_write_missing(missing_mb)))
            return
        self._residents.note_woken(model_id, claims_mb, time.monotonic())
        try:
            async with self._shared.starting_on(devices):
                if self._shared.status(run) is not ModelStatus.LOADING:
                    return
                began_s = time.monotonic()
                within_s = self._within_s(run, self._residents.costs.find(model_id).wake_s)
                await _ask(link, WAKE_PATH, b"{}", within_s)
        except (CortexError, _MoveError) as error:
            if self._shared.status(run) is ModelStatus.LOADING:
                run.lose(Failure(kind="wake_failed", reason=f"it did not wake: {error}"))
            return
        if self._shared.status(run) is not ModelStatus.LOADING:
            return
        self._residents.note_awake(model_id)
        wake_s = time.monotonic() - began_s
        self._shared.metrics.note_move("wake", wake_s)
        self._shared.costs.note_wake(model_id, wake_s)
        log.info("model woke", model=model_id, wake_s=round(wake_s, 3))
        run.settle()


def _sleeps_on(resident: Resident, device: int) -> bool:
    """Whether it is asleep there; one that still waits for its requests to end has its claims."""
    asleep = resident.status is ModelStatus.SLEEPING and not resident.claims_mb
    return asleep and device in resident.devices


def _write_missing(missing_mb: Mapping[int, int]) -> str:
    each = ", ".join(f"{mb} MiB of device {device}" for device, mb in missing_mb.items())
    return f"it sleeps, and to wake it lacks {each}"


class _MoveError(Exception):
    """The engine did not do it; the message says why."""


async def _ask(link: Link, path: str, body: bytes, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s), link.client.open("POST", path, body=body) as reply:
            answer = await read_all(reply)
    except TimeoutError:
        raise _MoveError(f"its engine took longer than {within_s:g} s") from None
    if reply.status != 200:
        raise _MoveError(answer.decode("utf-8", "replace"))


def _weights_mb(run: Run) -> int:
    return run.launch.weights_mb if run.launch else 0
