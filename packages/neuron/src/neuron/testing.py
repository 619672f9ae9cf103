# SPDX-License-Identifier: GPL-3.0-or-later
"""The test kit: a driver that says what it is told, and a daemon in this process with real engine hosts."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.http.client import Client, read_all
from cortex_core.http.headers import Headers
from cortex_core.testing import serving
from neuron.app import Daemon
from neuron.config import Config, HarnessEntry
from neuron.discovery import Driver, GpuReading, Gpus
from neuron.harnesses.hosted import Hosted
from neuron.run_dir import open_run_dir


def make_gpu(index: int = 0, total_mb: int = 24_000) -> Device:
    """A GPU."""
    return Device(index=index, uuid=f"GPU-{index}", name="Test GPU", vram_total_mb=total_mb)


class FakeGpus:
    """A driver that says what it is told to say."""

    def __init__(
        self, driver: Driver | None = None, readings: list[GpuReading] | None = None
    ) -> None:
        self._driver = driver or Driver()
        self.readings = readings or []
        self.closed = False

    def driver(self) -> Driver:
        return self._driver

    def read(self) -> list[GpuReading]:
        return self.readings

    def close(self) -> None:
        self.closed = True


def make_config(**fields: Any) -> Config:
    """A daemon with the harness `echo` alone."""
    return Config(harnesses=[HarnessEntry(name="echo")], **fields)


def make_echo(model_id: str, **fields: Any) -> ModelSpec:
    """An echo model."""
    return ModelSpec(model_id=model_id, harness="echo", **fields)


class Served:
    """A daemon and a client of it."""

    def __init__(self, daemon: Daemon, endpoint: str) -> None:
        self.daemon = daemon
        self.endpoint = endpoint
        self.client = Client(endpoint)

    @property
    def echo(self) -> Hosted:
        """Its harness for echo engines."""
        return self.daemon.harnesses["echo"]

    async def get(self, path: str) -> Any:
        """The JSON at a path."""
        return await self.client.ask("GET", path, object)

    async def post(
        self, path: str, body: object, headers: Headers | None = None
    ) -> tuple[int, Any, dict[bytes, bytes]]:
        """Status, body (decoded where it is JSON) and headers."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.open("POST", path, headers=headers, body=data) as reply:
            raw = await read_all(reply)
            fields = {name.lower(): value for name, value in reply.headers}
            return reply.status, raw if reply.is_event_stream else json.loads(raw), fields

    async def load(self, model_id: str, **fields: Any) -> dict[str, Any]:
        """Load an echo model; fails where that fails."""
        body = {"model_id": model_id, "harness": "echo", **fields}
        status, answer, _ = await self.post("/models/load", body)
        if status not in (200, 202):
            raise AssertionError(f"{status}: {answer}")
        loaded: dict[str, Any] = answer
        return loaded

    async def until(self, path: str, holds: Callable[[Any], bool], within_s: float = 5.0) -> Any:
        """Poll a path until `holds(answer)`; fails with the last answer when time is up."""
        answer = None
        try:
            async with asyncio.timeout(within_s):
                while not holds(answer := await self.get(path)):  # noqa: ASYNC110 - a daemon is polled
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{path} still says {answer}") from None
        return answer

    def status(self, model_id: str) -> str | None:
        """Of a model; None: it is not resident."""
        resident = self.daemon.residents.get(model_id)
        return resident.status if resident else None

    async def until_status(self, model_id: str, wanted: str | None, within_s: float = 10.0) -> None:
        """Wait until a model has a status."""
        async with asyncio.timeout(within_s):
            while self.status(model_id) != wanted:  # noqa: ASYNC110 - a daemon is polled
                await asyncio.sleep(0.005)

    @property
    def host_pids(self) -> list[int]:
        """Of the engine hosts that it has."""
        return [r.pid for r in self.daemon.residents.all() if r.pid is not None]


@asynccontextmanager
async def serve(config: Config, gpus: Gpus | None = None) -> AsyncIterator[Served]:
    """A daemon on a free loopback port."""
    with (
        tempfile.TemporaryDirectory(prefix="nt") as folder,
        open_run_dir(f"{folder}/run") as run_dir,
    ):
        async with asyncio.TaskGroup() as tasks:
            config = msgspec.structs.replace(
                config, state_dir=config.state_dir or f"{folder}/state"
            )
            daemon = Daemon(config, gpus or FakeGpus(), run_dir, tasks)
            async with serving(daemon.front) as endpoint:
                served = Served(daemon, endpoint)
                try:
                    yield served
                finally:
                    await served.client.close()
                    daemon.front.close()
                    daemon.weights.close()
                    stops = [harness.stop() for harness in daemon.harnesses.values()]
                    await asyncio.gather(*stops, daemon.counters.stop())
