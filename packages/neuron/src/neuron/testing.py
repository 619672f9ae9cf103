# SPDX-License-Identifier: GPL-3.0-or-later
"""The test kit: a driver that says what it is told, a daemon in this process with real engine hosts, what those leave."""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.http.client import Client, read_all
from cortex_core.http.headers import Headers
from cortex_core.testing import serving
from neuron import machine
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

    def driver(self) -> Driver:
        return self._driver

    def read(self) -> list[GpuReading]:
        return self.readings


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
            gpus = gpus or FakeGpus()
            daemon = Daemon(config, gpus, gpus.driver(), run_dir, tasks)
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


class Left(NamedTuple):
    """What engines have of this machine and of the daemon, and could leave behind.

    Attributes:
        processes: whose parent this one is.
        lost: processes of an engine that is to be gone.
        descriptors: pipes, processes and unix sockets that are open. Not TCP: both ends of what a test asks are here.
        folders: of engines, in the daemon's run_dir.
        segments: shared memory that no living process has: another's engine, which lives, is no fault of ours.
        models: that serve.
        places: requests that run or wait at them.
    """

    processes: int
    lost: int
    descriptors: int
    folders: int
    segments: frozenset[str]
    models: frozenset[str]
    places: int

    @classmethod
    def look(cls, served: Served, lost: int | None = None) -> "Left":
        """What there is now. `lost` is the process group of the engine that is to be gone."""
        shared = next(iter(served.daemon.harnesses.values()))._shared  # noqa: SLF001 - tests look behind
        links = shared.traffic._links  # noqa: SLF001
        admissions = [a for link in links.values() for a in (link.admission, link.counting)]
        return cls(
            processes=len(_children()),
            lost=len(machine.group_members({lost})) if lost else 0,
            descriptors=len(_descriptors()),
            folders=len(list(shared.run_dir.path.glob("engine-*"))),
            segments=_orphaned_segments(),
            models=frozenset(links),
            places=sum(admission.running + admission.waiting for admission in admissions),
        )

    def more_than(self, before: "Left") -> list[str]:
        """What there is more of. Less is no fault: a connection that was kept open is closed in the end."""
        pairs: Iterable[tuple[str, Any, Any]] = zip(self._fields, self, before, strict=True)
        return [name for name, now, then in pairs if not now <= then]

    def figures(self) -> str:
        """In numbers, for people."""
        return f"{self.processes} processes, {self.descriptors} descriptors, {len(self.segments)} segments left"


async def nothing_is_left(served: Served, before: Left, lost: int | None = None) -> None:
    """Wait until there is no more than there was `before`; fails with what there is more of when that takes long."""
    more = ["not looked yet"]
    try:
        async with asyncio.timeout(20):
            while more := Left.look(served, lost).more_than(before):  # noqa: ASYNC110 - processes are looked at
                await asyncio.sleep(0.05)
    except TimeoutError:
        now = Left.look(served, lost)
        raise AssertionError(f"more {', '.join(more)} than before: {before}, now {now}") from None


def _children() -> list[str]:
    found: list[str] = []
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += children.read_text().split()
    return found


def _descriptors() -> list[str]:
    unix = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    names = [_target(entry) for entry in Path("/proc/self/fd").iterdir()]
    return [
        name
        for name in names
        if name.startswith(("pipe:", "anon_inode:[pidfd]")) or name.strip("socket:[]") in unix
    ]


def _target(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:  # closed meanwhile
        return ""


def _orphaned_segments() -> frozenset[str]:
    there = {entry.inode(): entry.name for entry in os.scandir(machine.SHARED_MEMORY)}
    pids = [int(entry.name) for entry in machine.PROC.glob("[0-9]*")]
    mapped = {inode for pid in pids for inode in machine.mapped_inodes(pid)}
    return frozenset(name for inode, name in there.items() if inode not in mapped)
