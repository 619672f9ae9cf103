# SPDX-License-Identifier: GPL-3.0-or-later
"""From a Config to a running daemon: the one place that knows all the parts."""

import asyncio
import importlib
import os
import secrets
from typing import Any

import msgspec

from cortex_core import logs, notify
from cortex_core.build import version_of
from cortex_core.control import ModelSpec
from cortex_core.discovery import Discovery
from cortex_core.http import server
from cortex_core.http.front import Front
from cortex_core.node import ModelState
from neuron.activating import Activating
from neuron.apart import ask_apart
from neuron.config import Config
from neuron.counting import Counting
from neuron.default_models import DefaultModels
from neuron.discovery import Driver, Gpus, choose_platform, describe
from neuron.endpoints import Endpoints
from neuron.harnesses import HARNESSES
from neuron.harnesses.counters import Counters
from neuron.harnesses.hosted import Hosted
from neuron.harnesses.run import Shared
from neuron.harnesses.spares import Spares
from neuron.inference import Inference
from neuron.machine import read_machine
from neuron.measuring import LONGEST_S, Measuring
from neuron.metrics import Metrics
from neuron.nvml import Nvml
from neuron.remembering import Remembering, state_dir
from neuron.residents import Residents
from neuron.run_dir import RunDir, open_run_dir
from neuron.secret import Secret, is_loopback
from neuron.traffic import Traffic
from neuron.weights.routes import WeightsRoutes
from neuron.weights.store import Weights

log = logs.get(__name__)

# After the drain, what still runs is cut.
GRACE_S = 0.5


class Daemon:
    """All parts of one daemon, wired."""

    def __init__(
        self,
        config: Config,
        gpus: Gpus,
        driver: Driver,
        run_dir: RunDir,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._config = config
        self.remembering = Remembering(state_dir(config.state_dir, os.environ))
        costs = self.remembering.costs
        residents, traffic = Residents(costs), Traffic(config.admission)
        self._traffic = traffic
        self.residents = residents
        platform, found = discover(config, driver)
        self.found = msgspec.structs.replace(found, instance=secrets.token_hex(8))
        self.measuring = Measuring(gpus, self.found.devices, residents)
        metrics = Metrics(residents, self.measuring, traffic)
        self.weights = Weights(config, residents, tasks, os.environ)
        shared = Shared(
            platform=platform,
            found=self.found,
            measuring=self.measuring,
            residents=residents,
            costs=costs,
            traffic=traffic,
            metrics=metrics,
            run_dir=run_dir,
            tasks=tasks,
            spares=Spares(tasks),
            weights=self.weights,
            config=config,
        )
        self.harnesses = {
            name: build_harness(name, config, shared) for name in config.harness_names
        }
        self.counters = Counters(shared)
        counting = Counting(
            node=self.found.hostname,
            residents=residents,
            traffic=traffic,
            harnesses=self.harnesses,
            counters=self.counters,
            defaults=config.default_models,
        )
        self.activating = Activating([spec.model_id for spec in config.default_models])
        inference = Inference(self.found.hostname, residents, traffic, metrics, self.measuring)
        secret = Secret(config.secret)
        endpoints = Endpoints(
            found=self.found,
            harnesses=self.harnesses,
            residents=residents,
            traffic=traffic,
            measuring=self.measuring,
            activating=self.activating,
            metrics=metrics,
            is_closing=lambda: self.front.closing.is_set(),
            secret=secret,
        )
        weights = WeightsRoutes(self.weights, lambda: self.front.closing.is_set())
        self.front = Front(
            daemon="neuron",
            hot={**inference.routes(), **counting.routes()},
            routes=[*endpoints.routes(), *weights.routes()],
            max_body_mb=config.max_body_mb,
            on_end=inference.note_end,
            admit=secret.admit,
        )

    async def load_defaults(self) -> None:
        """Get the harnesses ready, then load the default models."""
        for harness in self.harnesses.values():
            await harness.start()
        await DefaultModels(self._config.default_models, self._load, self.activating).run()

    async def _load(self, spec: ModelSpec, wait: bool) -> ModelState:
        return await self.harnesses[spec.harness].load(spec, wait=wait)

    async def stop(self) -> None:
        """Refuse new work, let running requests end, then end the engines. All of it bounded."""
        self.front.close()
        self._traffic.close()
        self.weights.close()
        for harness in self.harnesses.values():
            harness.close()
        self.counters.close()
        if not await self.front.drained(self._config.drain_s):
            log.warning("requests cut", running=self.front.in_flight, waited_s=self._config.drain_s)
        stops = [harness.stop() for harness in self.harnesses.values()]
        await asyncio.gather(*stops, self.counters.stop())


def discover(config: Config, driver: Driver) -> tuple[str, Discovery]:
    """Where vLLM engines run, and what the machine offers."""
    platform = choose_platform(config.harness.vllm.platform, driver)
    found = describe(
        read_machine(),
        driver,
        platform=platform,
        harnesses=config.harness_names,
        cpu_budget_mb=config.harness.vllm.cpu_budget_mb,
        version=version_of("helexa-neuron"),
    )
    return platform, found


def build_harness(name: str, config: Config, shared: Shared) -> Hosted:
    """The harness of a name; its module is imported now."""
    module, _, kind = HARNESSES[name].partition(":")
    harness: Hosted = getattr(importlib.import_module(module), kind)(config, shared)
    return harness


async def run(config: Config, gpus: Gpus | None = None) -> None:
    """Run a daemon until SIGTERM or SIGINT.

    Raises:
        OperatorError: the address or the run_dir cannot be used.
    """
    stop = server.stop_on_signals()
    sock = server.bind(f"{_bracketed(config.listen)}:{config.port}")
    host, port = sock.getsockname()[:2]
    end = asyncio.Event()
    gpus = gpus or Nvml()
    with open_run_dir(config.run_dir) as run_dir:
        driver = await _ask_driver(gpus, stop)
        if driver is None:
            return
        async with asyncio.TaskGroup() as tasks:
            daemon = Daemon(config, gpus, driver, run_dir, tasks)
            _log_found(daemon.found, f"{_bracketed(host)}:{port}")
            if config.secret is None and not is_loopback(host):
                log.warning(
                    "no secret configured, taking orders from anyone who reaches this address",
                    address=f"{_bracketed(host)}:{port}",
                )
            tasks.create_task(server.serve(daemon.front, sock, end, grace_s=GRACE_S))
            loops = [
                tasks.create_task(daemon.measuring.run()),
                tasks.create_task(daemon.remembering.run()),
                tasks.create_task(notify.feed_watchdog(os.environ)),
                tasks.create_task(daemon.load_defaults()),
            ]
            notify.notify("READY=1", os.environ)
            await stop.wait()
            notify.notify("STOPPING=1", os.environ)
            log.info("neuron stops")
            for loop in loops:
                loop.cancel()
            await daemon.stop()
            daemon.remembering.save()
            end.set()


async def _ask_driver(gpus: Gpus, stop: asyncio.Event) -> Driver | None:
    """What the driver has, however long it takes to say so; None: the daemon is to end before that."""
    asking, stopping = ask_apart(gpus.driver), asyncio.ensure_future(stop.wait())
    both: set[asyncio.Future[Any]] = {asking, stopping}
    try:
        done, _ = await asyncio.wait(both, timeout=LONGEST_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            log.error("driver does not answer", waited_s=LONGEST_S)
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return asking.result() if asking.done() else None
    finally:
        stopping.cancel()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _log_found(found: Discovery, address: str) -> None:
    if found.cuda_unavailable_reason:
        log.error("no GPU can be used", reason=found.cuda_unavailable_reason)
    elif found.driver_version is None:
        log.info("no NVIDIA driver")
    log.info(
        "neuron serves",
        address=address,
        harnesses=found.harnesses,
        devices=[f"{d.index}: {d.name}, {d.vram_total_mb} MiB" for d in found.devices],
        driver_version=found.driver_version,
        cuda=found.cuda_version,
        host_ram_mb=found.host_ram_mb,
        version=found.version,
    )
