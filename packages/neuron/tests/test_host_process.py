# SPDX-License-Identifier: GPL-3.0-or-later
"""Against small programs in the place of an engine host: each is a script that `PYTHON -m neuron.host` runs."""

import asyncio
import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from cortex_core.control import ModelSpec
from neuron.host import segments
from neuron.host.messages import Activity, Phase, Ready, Start
from neuron.host_process import (
    HostProcess,
    HostSilentError,
    HostStartError,
    lines_of,
    start_host,
    write_end,
)

START = Start(spec=ModelSpec(model_id="m"), socket="/s", run_dir="/r")
Open = Callable[[str], AbstractAsyncContextManager[HostProcess]]

pytestmark = pytest.mark.slow


@pytest.fixture
async def open_script(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens a host whose interpreter runs the given Python code instead."""
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$SCRIPT"\n')
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    async with asyncio.TaskGroup() as tasks:

        @asynccontextmanager
        async def open_it(script: str) -> AsyncIterator[HostProcess]:
            environ = {**os.environ, "SCRIPT": script}
            host = await start_host(str(interpreter), environ, "m", tasks)
            await host.tell(START)
            try:
                yield host
            finally:
                await host.stop(2)

        yield open_it


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(5):
        while is_alive(pid):
            await asyncio.sleep(0.01)


async def test_it_is_told_what_to_run_and_heard(open_script: Open) -> None:
    script = """
import sys
import time
assert '"model_id":"m"' in sys.stdin.readline()
print('{"type":"phase","phase":"loading","ratio":0.5}')
print('{"type":"ready"}', flush=True)
sys.stdin.read()
"""
    async with open_script(script) as host:
        assert await host.read() == Phase(phase="loading", ratio=0.5)
        assert await host.read() == Ready()
        pid = host.pid
    await until_dead(pid)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("pass", "its process ended with exit code 0"),
        (
            "import sys; sys.exit('no memory left')",
            "its process ended with exit code 1; its last words: no memory left",
        ),
        ("import os; os.kill(os.getpid(), 9)", "its process was killed by SIGKILL"),
    ],
)
async def test_its_end_is_told_with_its_last_words(
    open_script: Open, script: str, reason: str
) -> None:
    async with open_script(script) as host:
        assert await host.read() is None
        assert await host.why_ended() == reason


async def test_what_is_no_message_is_an_end(open_script: Open) -> None:
    async with open_script("print('hello', flush=True); input()") as host:
        assert await host.read() is None


async def test_one_that_does_not_stop_is_killed_with_its_children(open_script: Open) -> None:
    script = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print('{"type":"phase","phase":"%d"}' % child.pid, flush=True)
time.sleep(60)
"""
    async with open_script(script) as host:
        told = await host.read()
        assert isinstance(told, Phase)
        child, own = int(told.phase), host.pid
        assert is_alive(child)
    await until_dead(child)
    await until_dead(own)


async def test_children_of_one_that_died_are_swept(open_script: Open) -> None:
    script = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print('{"type":"phase","phase":"%d"}' % child.pid, flush=True)
os._exit(1)
"""
    async with open_script(script) as host:
        told = await host.read()
        assert isinstance(told, Phase)
        async with asyncio.timeout(5):
            assert await host.read() is None
        await until_dead(int(told.phase))


SAYS_READY = 'import sys, time; print(\'{"type":"ready"}\', flush=True); time.sleep(60)'


async def test_one_that_falls_silent_is_told_in_time(open_script: Open) -> None:
    async with open_script(SAYS_READY) as host:
        assert await host.read_within(10) == Ready()
        began_s = time.monotonic()
        with pytest.raises(HostSilentError, match=r"it said nothing for 0\.4 s"):
            await host.read_within(0.4)
        assert 0.4 <= time.monotonic() - began_s < 1.4


async def test_one_whose_engine_is_silent_is_told_though_it_speaks(open_script: Open) -> None:
    script = """
import time
print('{"type":"activity","silent_s":0.4}', flush=True)
print('{"type":"activity","silent_s":0.5}', flush=True)
time.sleep(60)
"""
    async with open_script(script) as host:
        assert isinstance(await host.read_within(0.5), Activity)
        with pytest.raises(HostSilentError, match=r"its engine did not answer for 0\.5 s"):
            await host.read_within(0.5)


async def hear_all(host: HostProcess) -> None:
    async with asyncio.timeout(10):
        while await host.read_within(0.5):
            pass


async def test_a_child_that_is_stopped_is_told_though_the_host_speaks(open_script: Open) -> None:
    script = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
os.kill(child.pid, signal.SIGSTOP)
while True:
    print('{"type":"activity"}', flush=True)
    time.sleep(0.1)
"""
    async with open_script(script) as host:
        with pytest.raises(HostSilentError, match=r"its process \d+ was stopped for 0\.5 s"):
            await hear_all(host)


async def test_what_was_said_while_the_daemon_stood_still_is_heard(open_script: Open) -> None:
    script = """
import time
print('{"type":"ready"}', flush=True)
time.sleep(0.2)
print('{"type":"activity"}', flush=True)
time.sleep(60)
"""
    async with open_script(script) as host:
        assert await host.read_within(10) == Ready()
        hearing = asyncio.create_task(host.read_within(0.8))
        await asyncio.sleep(0)
        time.sleep(1.2)  # noqa: ASYNC251 - a daemon that was stopped, and runs on
        assert await hearing == Activity()


async def test_shared_memory_goes_with_those_who_had_it(open_script: Open) -> None:
    script = """
import time
from multiprocessing import shared_memory
segment = shared_memory.SharedMemory(create=True, size=4096)
print('{"type":"phase","phase":"%s"}' % segment.name, flush=True)
time.sleep(60)
"""
    async with open_script(script) as host:
        told = await host.read()
        assert isinstance(told, Phase)
        segment = Path("/dev/shm") / told.phase  # noqa: S108 - where the kernel keeps them
        assert segment.exists()
        host.kill_group()
    assert not segment.exists()


async def test_shared_memory_of_a_process_that_died_before_anybody_looked_goes_too(
    open_script: Open,
) -> None:
    script = """
import os, time
from multiprocessing import resource_tracker, shared_memory
from neuron.host import segments
segments.name_after(os.getpid())
segment = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(segment._name, "shared_memory")
print('{"type":"phase","phase":"%s"}' % segment.name, flush=True)
segment.close()
time.sleep(60)
"""
    async with open_script(script) as host:
        told = await host.read()
        assert isinstance(told, Phase)
        segment = segments.SHARED_MEMORY / told.phase
        assert segment.exists()
        host.kill_group()
    assert not segment.exists()


async def test_an_interpreter_that_is_not_there_is_named() -> None:
    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(HostStartError, match="/no/python cannot be run: No such file"):
            await start_host("/no/python", {}, "m", tasks)


async def test_long_lines_are_cut_and_endless_ones_dropped() -> None:
    reader = asyncio.StreamReader(limit=1000)
    reader.feed_data(b"a" * 800 + b"\n\n" + b"b" * 5000 + b"\nlast")
    reader.feed_eof()
    lines = [line async for line in lines_of(reader)]
    assert lines[0] == "a" * 500
    assert lines[-1] == "last"


@pytest.mark.parametrize(
    ("code", "tail", "said"),
    [
        (None, [], "its process does not answer"),
        (0, [], "its process ended with exit code 0"),
        (3, ["one", "two"], "its process ended with exit code 3; its last words: two"),
        (-11, [], "its process was killed by SIGSEGV"),
        (-99, [], "its process was killed by signal 99"),
    ],
)
def test_an_end_is_written_in_words(code: int | None, tail: list[str], said: str) -> None:
    assert write_end(code, tail) == said
