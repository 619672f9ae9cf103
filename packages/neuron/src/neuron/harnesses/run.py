# SPDX-License-Identifier: GPL-3.0-or-later
"""One engine's life as data: how it is started, who waits for it, and what all harnesses share."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from cortex_core.control import ModelSpec
from cortex_core.discovery import Discovery
from cortex_core.errors import CortexError
from cortex_core.node import ModelStatus
from neuron.config import Config
from neuron.costs import Costs
from neuron.harnesses.spares import Recipe, Spares
from neuron.host_process import HostProcess
from neuron.measuring import Measuring
from neuron.metrics import Metrics
from neuron.residents import Failure, Residents
from neuron.run_dir import RunDir
from neuron.traffic import Traffic
from neuron.weights.store import Weights


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How one engine is started, all of it decided.

    Attributes:
        python: interpreter of the engine's environment.
        environ: variables beside the daemon's own; None removes one.
        settings: what the engine in the host needs beside the spec.
        model_path: directory of the model's files; None: the engine needs none.
        devices: indices; no two engines start on one device at the same time. Empty: it uses none.
        claims_mb: MiB that it is given of each device, by index.
        weights_mb: MiB of weights, over all devices.
        start_timeout_s, stop_timeout_s: seconds it may take to come up, and to end.
        heartbeat_timeout_s: seconds that it may be silent.
        spare: which warm spare it can use; None: it starts from nothing.
        ranks: of tensor parallelism, whether the spec says or not.
    """

    python: str
    environ: Mapping[str, str | None] = {}
    settings: dict[str, Any] = {}
    model_path: str | None = None
    devices: list[int] = []
    claims_mb: Mapping[int, int] = {}
    weights_mb: int = 0
    start_timeout_s: float
    stop_timeout_s: float
    heartbeat_timeout_s: float
    spare: Recipe | None = None
    ranks: int = 1


class Run:
    """One engine's life, as those who wait for it, or move it, see it.

    Attributes:
        planned: its spec is sound, or it has failed.
        settled: it serves, or it has failed.
        gone: nothing is left of it.
        decided: an unload has ended: it is gone, or was kept.
        error: why it does not serve; None: it does, or it is not known yet.
        moving: held by who has it sleep or wake.
        launch: how it was last started; None: that is not decided yet.
        sleep_level: at which it sleeps, or slept last.
        host: its process; None: there is none now.
        doom: why its process is being killed; None: it is not.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.planned = asyncio.Event()
        self.settled = asyncio.Event()
        self.gone = asyncio.Event()
        self.decided = asyncio.Event()
        self.error: CortexError | None = None
        self.moving = asyncio.Lock()
        self.launch: Launch | None = None
        self.sleep_level = 1
        self.host: HostProcess | None = None
        self.doom: Failure | None = None
        self.task: asyncio.Task[None] | None = None
        self._ending = False

    def settle(self, error: CortexError | None = None) -> None:
        """Tell those who wait. The first word stands."""
        if not self.settled.is_set():
            self.error = error
        self.planned.set()
        self.settled.set()

    def reopen(self) -> None:
        """It is to come up again: who asks from now on waits for that."""
        self.error = None
        self.settled = asyncio.Event()

    def lose(self, failure: Failure) -> None:
        """Kill its process, which cannot go on. What becomes of it then is as for any engine that was lost."""
        self.doom = failure
        if self.host is not None:
            self.host.kill_group()

    def end(self) -> None:
        """End the engine. Once: a second cancellation would cut its cleaning up short."""
        if self.task is not None and not self._ending:
            self._ending = True
            self.task.cancel()


class Shared:
    """What all harnesses of a daemon share. `platform` is `cpu` or `cuda`."""

    def __init__(
        self,
        *,
        platform: str,
        found: Discovery,
        measuring: Measuring,
        residents: Residents,
        costs: Costs,
        traffic: Traffic,
        metrics: Metrics,
        run_dir: RunDir,
        tasks: asyncio.TaskGroup,
        spares: Spares,
        weights: Weights,
        config: Config,
    ) -> None:
        self.platform = platform
        self.found = found
        self.measuring = measuring
        self.residents = residents
        self.costs = costs
        self.traffic = traffic
        self.metrics = metrics
        self.run_dir = run_dir
        self.tasks = tasks
        self.spares = spares
        self.weights = weights
        self.supervision = config.supervision
        self.max_sleeping = config.max_sleeping
        self.drain_s = config.drain_s
        self.traces = config.log_level == "trace"
        self.runs: dict[str, Run] = {}
        self._starting: dict[int, asyncio.Lock] = {}
        self._starts: Counter[int] = Counter()

    def status(self, run: Run) -> ModelStatus | None:
        """Of a run's model; None: nothing of it is here any more, whoever has its id by now."""
        model_id = run.spec.model_id
        resident = self.residents.get(model_id) if self.runs.get(model_id) is run else None
        return resident.status if resident else None

    @asynccontextmanager
    async def starting_on(self, devices: list[int]) -> AsyncIterator[None]:
        """Hold the devices for a start. Taken in order, so that no two starts wait for each other."""
        async with AsyncExitStack() as stack:
            for device in sorted(set(devices)):
                await stack.enter_async_context(self._starting.setdefault(device, asyncio.Lock()))
            self._starts.update(set(devices))
            try:
                yield
            finally:
                self._starts.update(set(devices))

    def starts_on(self, devices: Iterable[int]) -> dict[int, int]:
        """How many starts have begun or ended on each device so far: an odd number means that one is under way."""
        return {device: self._starts[device] for device in devices}
