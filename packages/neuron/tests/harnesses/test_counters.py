# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes that count: how many there are, how long, and what becomes of one that dies."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cortex_core.control import ModelSpec
from cortex_core.errors import LoadFailedError, QueueFullError, ShuttingDownError
from cortex_core.http.client import read_all
from neuron.harnesses import counters
from neuron.harnesses.counters import Counters
from neuron.harnesses.run import Launch
from neuron.testing import Served, make_echo

pytestmark = pytest.mark.slow


def engine_folders(served: Served) -> list[str]:
    return [path.name for path in served.echo._shared.run_dir.path.glob("engine-*")]


async def count(made: Counters, served: Served, spec: ModelSpec) -> int:
    async with made.open(spec, await served.echo.plan_count(spec)) as link:
        body = b'{"prompt": "one two"}'
        async with link.client.open("POST", "/tokenize", body=body) as reply:
            await read_all(reply)
            return reply.status


def pids() -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_host(entry)
    ]


def _is_host(entry: Path) -> bool:
    try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
        parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return False
    return b"neuron.host" in words and parent == os.getpid()


async def until_none(served: Served) -> None:
    async with asyncio.timeout(10):
        while pids() or engine_folders(served):
            await asyncio.sleep(0.01)


async def test_one_that_nobody_uses_ends_and_leaves_nothing(served: Served) -> None:
    made = Counters(served.echo._shared, idle_s=0.2)
    assert await count(made, served, make_echo("echo/a")) == 200
    assert len(pids()) == 1
    await until_none(served)
    assert await count(made, served, make_echo("echo/a")) == 200
    await made.stop()
    await until_none(served)


async def test_there_are_two_at_most_and_the_one_used_last_stays(served: Served) -> None:
    made = Counters(served.echo._shared)
    for model in ("echo/a", "echo/b", "echo/a", "echo/c"):
        assert await count(made, served, make_echo(model)) == 200
    assert [counter.model for counter in made._all] == ["echo/a", "echo/c"]
    await made.stop()


async def test_one_in_use_is_not_ended_for_another(served: Served) -> None:
    made = Counters(served.echo._shared)
    specs = [make_echo(model) for model in ("echo/a", "echo/b", "echo/c")]
    a, b, c = [(spec, await served.echo.plan_count(spec)) for spec in specs]
    async with made.open(*a), made.open(*b):
        with pytest.raises(QueueFullError):
            async with made.open(*c):
                raise AssertionError
    await made.stop()


async def test_one_that_dies_is_replaced(served: Served) -> None:
    made = Counters(served.echo._shared)
    await count(made, served, make_echo("echo/a"))
    (pid,) = pids()
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while made._all[0].link is not None:
            await asyncio.sleep(0.01)
    assert await count(made, served, make_echo("echo/a")) == 200
    assert pids() != [pid]
    await made.stop()


async def test_one_that_does_not_come_up_says_why_and_is_not_tried_at_once(served: Served) -> None:
    made = Counters(served.echo._shared)
    spec = make_echo("echo/a")
    launch = Launch(python="/nowhere", start_timeout_s=9, stop_timeout_s=9, heartbeat_timeout_s=9)
    for _ in range(2):
        with pytest.raises(LoadFailedError, match="/nowhere cannot be run"):
            async with made.open(spec, launch):
                raise AssertionError
    assert len(made._all) == 1
    first = made._all[0]
    assert first.used_s > first.failed_s, "whoever asked last asked after that"
    first.failed_s -= counters.FAILED_S
    with pytest.raises(LoadFailedError):
        async with made.open(spec, launch):
            raise AssertionError
    assert made._all[0] is not first
    await made.stop()


async def test_closing_tells_who_waits_and_lets_end_who_counts(
    served: Served, tmp_path: Path
) -> None:
    made = Counters(served.echo._shared)
    never = tmp_path / "python"
    never.write_text("#!/bin/sh\nexec sleep 60\n")
    never.chmod(0o755)
    launch = Launch(python=str(never), start_timeout_s=60, stop_timeout_s=9, heartbeat_timeout_s=60)

    async def wait() -> None:
        async with made.open(make_echo("echo/b"), launch):
            raise AssertionError

    async with made.open(make_echo("echo/a"), await served.echo.plan_count(make_echo("echo/a"))):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        made.close()
        with pytest.raises(ShuttingDownError):
            async with asyncio.timeout(1):
                await waiting
        assert [counter.model for counter in made._all if counter.link] == ["echo/a"]
    await made.stop()
    await until_none(served)


async def test_none_is_started_when_the_daemon_ends(served: Served) -> None:
    made = Counters(served.echo._shared)
    spec = make_echo("echo/a")
    launch = await served.echo.plan_count(spec)
    waiting = asyncio.create_task(count(made, served, spec))
    await asyncio.sleep(0)
    await made.stop()
    with pytest.raises(ShuttingDownError):
        await waiting
    with pytest.raises(ShuttingDownError):
        async with made.open(spec, launch):
            raise AssertionError
    await until_none(served)
