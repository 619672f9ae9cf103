# SPDX-License-Identifier: GPL-3.0-or-later
"""Each fault in each phase of a vLLM engine's life, in a real daemon.

Whatever happens to one model, the other one answers, clients are told in time, what can come back does, and
nothing is left over. The neuron's own tests have the same for what needs no vLLM: sleepers, and disks that are full
while something is downloaded.
"""

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

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
from neuron.harnesses.vllm import VllmHarness
from neuron.testing import Left, Served, nothing_is_left, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEMO, OTHER = "helexa/demo", "echo/other"
# The processes of an engine: the host, and in its group those that vLLM names so. Ranks have their own where there are several.
HOST, CORE, RANK = "host", "EngineCor", "Worker"
HEARTBEAT_S = 4.0
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Which port does the gateway use?"}]
ASKED = {"model": DEMO, "messages": MESSAGES, "temperature": 0}
LONG = {**ASKED, "max_tokens": 4000, "ignore_eos": True, "stream": True}
# Its prompts take seconds to read, one after the other, and what is asked of each token takes memory that nothing had yet.
PROMPTS = [[token] * 3000 for token in range(10, 42)]
MUCH = {"model": DEMO, "prompt": PROMPTS, "prompt_logprobs": 20, "max_tokens": 1}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Served]:
    """A daemon that notices soon and restarts at once, with a model that nothing happens to."""
    supervision = SupervisionSettings(heartbeat_timeout_s=HEARTBEAT_S, restart_window_s=0.001)
    config = Config(
        drain_s=30.0,
        harnesses=[HarnessEntry(name="vllm"), HarnessEntry(name="echo")],
        harness=HarnessSettings(vllm=VllmSettings(kv_cache_mb=64)),
        supervision=supervision,
    )
    async with serve(config) as made:
        await made.load(OTHER)
        importing = asyncio.create_task(import_ahead(made))
        yield made
        importing.cancel()
        await asyncio.wait({importing})


async def import_ahead(served: Served) -> None:
    """Have the next spare do its imports while an engine starts: they are most of what the cases would wait for."""
    vllm = served.daemon.harnesses["vllm"]
    assert isinstance(vllm, VllmHarness)
    assert vllm._spare is not None
    while True:
        await vllm._shared.spares.refill(vllm._spare)
        await asyncio.sleep(0.2)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def other(served: Served) -> AsyncIterator[None]:
    """The other model, which is asked all through each test, and answers."""
    done = asyncio.Event()
    asking = asyncio.create_task(ask_on(served, done))
    yield
    done.set()
    await asking


async def ask_on(served: Served, done: asyncio.Event) -> None:
    while not done.is_set():
        await ask_other(served)
        await asyncio.sleep(0.2)


async def ask_other(served: Served) -> None:
    async with asyncio.timeout(HEARTBEAT_S):
        code, answer, _ = await served.post(COMPLETIONS, {"model": OTHER, "prompt": "a"})
    assert code == 200, answer
    assert answer["choices"][0]["text"] == "a"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def before(served: Served) -> Mapping[ModelStatus | None, Left]:
    """What there is with the model loaded, and without."""
    await bring_up(served)
    await answers(served)
    await ask_other(served)  # its connection is kept open
    loaded = Left.look(served)
    await unload(served)
    await ask_other(served)
    unloaded = Left.look(served)
    return {ModelStatus.LOADED: loaded, ModelStatus.FAILED: unloaded, None: unloaded}


async def until(holds: Callable[[], object], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


async def load(served: Served, role: str = HOST) -> tuple[int, Any]:
    body = {"model_id": DEMO, "tensor_parallel": 2 if role == RANK else 1}
    code, answer, _ = await served.post("/models/load", body)
    return code, answer


async def unload(served: Served) -> tuple[int, Any]:
    code, answer, _ = await served.post("/models/unload", {"model_id": DEMO})
    return code, answer


async def bring_up(served: Served, role: str = HOST) -> None:
    code, answer = await load(served, role)
    if code == 409:  # it is up with another number of ranks
        await unload(served)
        code, answer = await load(served, role)
    assert code == 200, answer


async def answers(served: Served) -> None:
    code, answer, _ = await served.post(CHAT, ASKED)
    assert code == 200, answer
    assert answer["choices"][0]["message"]["content"] == "The gateway listens on port 31313."


def status(served: Served) -> ModelStatus | None:
    resident = served.daemon.residents.get(DEMO)
    return resident.status if resident else None


def pid_of(served: Served, role: str) -> int | None:
    """The host; or a process of its group by vLLM's name for it."""
    resident = served.daemon.residents.get(DEMO)
    host = resident.pid if resident else None
    if host is None or role == HOST:
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


def word_of(outcome: tuple[Any, ...]) -> str:
    """The error's code, of a whole answer or of a stream that broke; else what has become of the model."""
    answer = outcome[1]
    if isinstance(answer, bytes):
        *_, error, done, _ = answer.split(b"\n\n")
        assert done == b"data: [DONE]"
        answer = msgspec.json.decode(error.removeprefix(b"data: "))
    return str(answer["error"]["code"] if "error" in answer else answer.get("status"))


async def test_loads_and_unloads_over_and_over_leave_everything_flat(
    served: Served,
    before: Mapping[ModelStatus | None, Left],
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """As often as CORTEX_CYCLES says, or twice. docs/measurements.md has the figures of fifty, run by hand.

    The figures of this run are in the report of `--junitxml`.
    """
    before_mb = own_memory_mb()
    record_testsuite_property("before", f"{before_mb} MiB, {before[None].figures()}")
    for _ in range(int(os.environ.get("CORTEX_CYCLES", "2"))):
        await bring_up(served)
        await unload(served)
    after_mb = own_memory_mb()
    record_testsuite_property("after", f"{after_mb} MiB, {Left.look(served).figures()}")
    await nothing_is_left(served, before[None])
    assert after_mb - before_mb < 20


def own_memory_mb() -> int:
    """What this process, with the daemon in it, has of memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024)


# What somebody waits for, and the word that it is to end in.
Asked = list[tuple[asyncio.Task[Any], str]]

# Each brings the model into the phase.


async def loading(served: Served, role: str) -> Asked:
    await unload(served)
    asked = asyncio.create_task(load(served, role))
    await until(lambda: pid_of(served, CORE) and pid_of(served, role), 60)
    return [(asked, "load_failed")]


async def idle(served: Served, role: str) -> Asked:
    await bring_up(served, role)
    return []


async def prefill(served: Served, role: str) -> Asked:
    await bring_up(served, role)
    asked = asyncio.create_task(served.post(COMPLETIONS, MUCH))

    def has_arrived(health: Any) -> bool:
        return any(m["id"] == DEMO and m["running"] + m["waiting"] for m in health["models"])

    await served.until("/health", has_arrived)
    return [(asked, "engine_died")]


async def decode(served: Served, role: str) -> Asked:
    await bring_up(served, role)
    begun = asyncio.Event()
    asked = asyncio.create_task(stream(served, begun))
    await begun.wait()
    return [(asked, "engine_died")]


async def unloading(served: Served, role: str) -> Asked:
    asked = await decode(served, role)
    going = asyncio.create_task(unload(served))
    await until(lambda: status(served) is ModelStatus.UNLOADING, 1)
    return [*asked, (going, "unloaded")]


PHASES = [loading, idle, prefill, decode, unloading]
# What becomes of a model in that phase; in the others it comes back.
ENDS: Mapping[Any, ModelStatus | None] = {loading: ModelStatus.FAILED, unloading: None}


# Each is done to one process.


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def end(pid: int) -> None:
    """EngineCore then breaks off what runs, and hands out what there is of it."""
    os.kill(pid, signal.SIGTERM)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def starve(pid: int) -> None:
    """It gets no more memory."""
    resource.prlimit(pid, resource.RLIMIT_AS, (0, 0))


# In how many seconds clients are told.
WITHIN_S: Mapping[Any, float] = {
    kill: 1.0,
    end: 3.0,
    stop: HEARTBEAT_S + 1,
    starve: HEARTBEAT_S + 1,
}

# The same engine is used on as far as it goes: an order that needs few loads.
CASES = [
    *((fault, HOST, phase) for fault in (kill, stop) for phase in PHASES),
    *((fault, CORE, phase) for fault in (kill, stop) for phase in PHASES),
    (end, CORE, decode),
    # Who does nothing, or only writes one more token, needs no more memory.
    *((starve, CORE, phase) for phase in (loading, prefill)),
    *((fault, RANK, phase) for fault in (kill, stop) for phase in PHASES),
]


def name_of(part: Any) -> str:
    return part if isinstance(part, str) else part.__name__


@pytest.mark.parametrize(("fault", "role", "phase"), CASES, ids=name_of)
async def test_a_fault_is_told_mended_and_leaves_nothing(
    served: Served,
    fault: Callable[[int], None],
    role: str,
    phase: Callable[[Served, str], Awaitable[Asked]],
    before: Mapping[ModelStatus | None, Left],
) -> None:
    asked = await phase(served, role)
    pid, host = pid_of(served, role), pid_of(served, HOST)
    link = served.daemon._traffic.find(DEMO)
    assert pid is not None
    struck_s = time.monotonic()
    fault(pid)
    for waiting, word in asked:
        assert word_of(await waiting) == word
    # A client may be told by the engine's host before the daemon is.
    await until(lambda: pid_of(served, HOST) != host, WITHIN_S[fault])
    assert time.monotonic() - struck_s < WITHIN_S[fault]
    outcome = ENDS.get(phase, ModelStatus.LOADED)
    await until(lambda: status(served) is outcome, 60)
    if outcome is ModelStatus.LOADED:
        await answers(served)
    await nothing_is_left(served, before[outcome], lost=host)
    assert link is None or link.admission.running + link.admission.waiting == 0
