# SPDX-License-Identifier: GPL-3.0-or-later
"""Each fault in each phase of a vLLM engine's life, in a real daemon.

Whatever happens to one model, the other one answers, clients are told in time, what can come back does, and
nothing is left over. The neuron's own tests have the same for the phases that need no vLLM, sleeping among them.
"""

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import pytest_asyncio

from cortex_core.node import ModelStatus
from neuron.config import (
    Config,
    HarnessEntry,
    HarnessSettings,
    SupervisionSettings,
    VllmSettings,
)
from neuron.testing import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEMO, OTHER = "helexa/demo", "echo/other"
HEARTBEAT_S = 4.0
# A kill is told in this time.
AT_ONCE_S = 1.0
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only looked at
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Which port does the gateway use?"}]
ASKED = {"model": DEMO, "messages": MESSAGES, "temperature": 0}
LONG = {**ASKED, "max_tokens": 4000, "ignore_eos": True, "stream": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Served]:
    """A daemon that notices soon, with a model that nothing happens to."""
    config = Config(
        drain_s=30.0,
        harnesses=[HarnessEntry(name="vllm"), HarnessEntry(name="echo")],
        harness=HarnessSettings(vllm=VllmSettings(kv_cache_mb=64)),
        supervision=SupervisionSettings(heartbeat_timeout_s=HEARTBEAT_S, max_restarts=100),
    )
    async with serve(config) as made:
        await made.daemon.load_defaults()
        await made.load(OTHER)
        # Its connection is kept open, and is nothing that a fault leaves.
        await made.post("/v1/completions", {"model": OTHER, "prompt": "a"})
        await load(made)
        await unload(made)
        yield made


@pytest.fixture(scope="module")
def unloaded(served: Served) -> "Left":
    """What there is while the model is not loaded."""
    return Left.look(served)


class Left(NamedTuple):
    """What an engine could leave behind."""

    processes: int
    descriptors: int
    files: tuple[str, ...]
    shared_memory: frozenset[str]
    links: tuple[str, ...]

    @classmethod
    def look(cls, served: Served) -> "Left":
        shared = served.daemon.harnesses["vllm"]._shared
        return cls(
            processes=len(children()),
            descriptors=len(descriptors()),
            files=tuple(sorted(path.name for path in shared.run_dir.path.glob("engine-*"))),
            shared_memory=frozenset(path.name for path in SHARED_MEMORY.iterdir()),
            links=tuple(model for model, _ in shared.traffic.queues()),
        )

    def figures(self) -> str:
        """In numbers, for people."""
        return f"{self.processes} processes, {self.descriptors} descriptors, {len(self.shared_memory)} segments"

    def more_than(self, before: "Left") -> list[str]:
        """What there is more of. Less is no fault: a connection that was kept open is closed in the end."""
        pairs = zip(self._fields, self, before, strict=True)
        return [name for name, now, then in pairs if not _within(now, then)]


def _within(now: Any, then: Any) -> bool:
    return now <= then if isinstance(now, int) else set(now) <= set(then)


def descriptors() -> list[str]:
    """Pipes, processes and unix sockets that are open. Not TCP: both ends of this test's own asking are kept open."""
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
    except OSError:
        return ""


def children() -> list[str]:
    """Processes whose parent this one is, however they came to be."""
    own, found = str(os.getpid()), []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == own:
            found.append(entry.parent.name)
    return found


async def until(holds: Callable[[], object], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


async def load(served: Served, **fields: Any) -> tuple[int, Any]:
    body = {"model_id": DEMO, **fields}
    code, answer, _ = await served.post("/models/load", body)
    return code, answer


async def unload(served: Served) -> None:
    await served.post("/models/unload", {"model_id": DEMO})


def status(served: Served) -> ModelStatus | None:
    resident = served.daemon.residents.get(DEMO)
    return resident.status if resident else None


def pid_of(served: Served, role: str) -> int | None:
    """The host; or a process of its group by vLLM's name for it."""
    resident = served.daemon.residents.get(DEMO)
    host = resident.pid if resident else None
    if host is None or role == "host":
        return host
    for entry in Path("/proc").glob("[0-9]*/comm"):
        try:
            pid = int(entry.parent.name)
            if os.getpgid(pid) == host and entry.read_text().startswith(f"VLLM::{role}"):
                return pid
        except OSError:
            continue
    return None


async def stream(served: Served, begun: asyncio.Event) -> tuple[int, bytes]:
    parts: list[bytes] = []
    body = msgspec.json.encode(LONG)
    async with served.client.open("POST", CHAT, body=body) as reply:
        while part := await reply.read():
            parts.append(part)
            begun.set()
    return reply.status, b"".join(parts)


def code_of(outcome: tuple[int, Any, Any] | tuple[int, bytes]) -> str:
    """The error's code, of a whole answer or of a stream that broke."""
    answer = outcome[1]
    if not isinstance(answer, bytes):
        return str(answer["error"]["code"])
    *_, error, done, _ = answer.split(b"\n\n")
    assert done == b"data: [DONE]"
    return str(msgspec.json.decode(error.removeprefix(b"data: "))["error"]["code"])


Asked = asyncio.Task[Any]


# Each brings the model into the phase; what it returns is what a client waits for then.


async def loading(served: Served, role: str) -> Asked:
    await unload(served)
    asked = asyncio.create_task(served.post("/models/load", {"model_id": DEMO}))
    await until(lambda: pid_of(served, role), 60)
    return asked


async def idle(served: Served, role: str) -> None:
    await load(served)


async def prefill(served: Served, role: str) -> Asked:
    await load(served)
    core = pid_of(served, "EngineCor")
    assert core is not None
    os.kill(core, signal.SIGSTOP)  # its first step does not come
    asked = asyncio.create_task(served.post(CHAT, ASKED))

    def has_arrived(health: Any) -> bool:
        return any(m["id"] == DEMO and m["running"] + m["waiting"] for m in health["models"])

    await served.until("/health", has_arrived)
    return asked


async def decode(served: Served, role: str) -> Asked:
    await load(served)
    begun = asyncio.Event()
    asked = asyncio.create_task(stream(served, begun))
    await begun.wait()
    return asked


async def unloading(served: Served, role: str) -> Asked:
    asked = await decode(served, role)
    asked.unloading = asyncio.create_task(unload(served))  # type: ignore[attr-defined]
    await until(lambda: status(served) is ModelStatus.UNLOADING, 1)
    return asked


PHASES: list[Callable[[Served, str], Awaitable[Asked | None]]] = [
    loading,
    idle,
    prefill,
    decode,
    unloading,
]
CODES = {"loading": "load_failed", "prefill": "engine_died", "decode": "engine_died"}


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
@pytest.mark.parametrize("role", ["host", "EngineCor"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
async def test_a_fault_is_told_mended_and_leaves_nothing(
    served: Served,
    phase: Callable[[Served, str], Awaitable[Asked | None]],
    role: str,
    number: signal.Signals,
    unloaded: Left,
) -> None:
    within_s = AT_ONCE_S if number is signal.SIGKILL else HEARTBEAT_S + 1
    asked = await phase(served, role)
    pid, host = pid_of(served, role), pid_of(served, "host")
    assert pid is not None
    os.kill(pid, number)
    struck_s = time.monotonic()
    code, answer, _ = await served.post("/v1/completions", {"model": OTHER, "prompt": "a"})
    assert (code, answer["choices"][0]["text"]) == (200, "a")
    if asked is not None:
        outcome = await asked
        assert code_of(outcome) == CODES.get(phase.__name__, "engine_died")
    # A client may be told by the engine's host before the daemon is.
    await until(lambda: pid_of(served, "host") != host, within_s)
    took_s = time.monotonic() - struck_s
    assert took_s < within_s
    if phase is loading:
        assert status(served) is ModelStatus.FAILED
        await nothing_is_left(served, unloaded)
    elif phase is unloading:
        await until(lambda: status(served) is None, 10)
        await nothing_is_left(served, unloaded)
    else:  # the next phase, or the last one, sees what this one left
        await comes_back(served)


async def nothing_is_left(served: Served, before: Left) -> None:
    try:
        await until(lambda: not Left.look(served).more_than(before), 20)
    except TimeoutError:
        assert Left.look(served).more_than(before) == []


async def comes_back(served: Served) -> None:
    await until(lambda: status(served) is ModelStatus.LOADED, 60)
    _, answer, _ = await served.post(CHAT, ASKED)
    assert answer["choices"][0]["message"]["content"] == "The gateway listens on port 31313."


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
async def test_a_lost_rank_is_told_mended_and_leaves_nothing(
    served: Served, number: signal.Signals, unloaded: Left
) -> None:
    within_s = AT_ONCE_S if number is signal.SIGKILL else HEARTBEAT_S + 1
    assert (await load(served, tensor_parallel=2))[0] == 200
    begun = asyncio.Event()
    asked = asyncio.create_task(stream(served, begun))
    await begun.wait()
    rank, host = pid_of(served, "Worker"), pid_of(served, "host")
    assert rank is not None
    os.kill(rank, number)
    struck_s = time.monotonic()
    assert code_of(await asked) == "engine_died"
    await until(lambda: pid_of(served, "host") != host, within_s)
    assert time.monotonic() - struck_s < within_s
    await comes_back(served)
    await unload(served)
    await nothing_is_left(served, unloaded)


async def test_an_engine_out_of_memory_is_lost_and_comes_back(served: Served) -> None:
    await load(served)
    core = pid_of(served, "EngineCor")
    assert core is not None
    size_bytes = int(Path(f"/proc/{core}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(core, resource.RLIMIT_AS, (size_bytes, size_bytes))
    prompts = [[token] * 3000 for token in range(10, 26)]
    body = {"model": DEMO, "prompt": prompts, "max_tokens": 1}
    code, answer, _ = await served.post("/v1/completions", body)
    assert (code, answer["error"]["code"]) == (502, "engine_died")
    await until(lambda: pid_of(served, "EngineCor") not in (None, core), 60)
    await until(lambda: status(served) is ModelStatus.LOADED, 60)
    await unload(served)


async def test_loads_and_unloads_over_and_over_leave_everything_flat(
    served: Served, unloaded: Left, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """As often as CORTEX_CYCLES says: a few times in every run, fifty times in the full one.

    The figures are in the report of `--junitxml`.
    """
    before_mb = own_memory_mb()
    record_testsuite_property("before", f"{before_mb} MiB, {unloaded.figures()}")
    for _ in range(int(os.environ.get("CORTEX_CYCLES", "4"))):
        assert (await load(served))[0] == 200
        await unload(served)
    after_mb = own_memory_mb()
    record_testsuite_property("after", f"{after_mb} MiB, {Left.look(served).figures()}")
    await nothing_is_left(served, unloaded)
    assert after_mb - before_mb < 20


def own_memory_mb() -> int:
    """What this process, with the daemon in it, has of memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024)
