# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


async def test_what_it_started_ends_with_it_though_the_daemon_was_killed(tmp_path: Path) -> None:
    """A daemon that is killed cannot sweep: the host does."""
    script = f"""
import asyncio, subprocess, sys, os
from neuron.host import leash
async def main():
    stop = asyncio.Event()
    leash.tie(0, stop)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
    print("here", flush=True)
    await stop.wait()
    leash.end_others()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", script),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdin
    await process.stdout.readline()
    child = int((tmp_path / "child").read_text())
    process.stdin.close()
    async with asyncio.timeout(5):
        assert await process.wait() == 0
        while _is_alive(child):
            await asyncio.sleep(0.01)


async def test_a_loop_that_hangs_does_not_outlive_the_daemon() -> None:
    script = """
import asyncio, sys, time
from neuron.host import leash
async def main():
    leash.tie(0, asyncio.Event(), within_s=0.1)
    print("here", flush=True)
    time.sleep(60)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", script),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdin
    await process.stdout.readline()
    process.stdin.close()
    async with asyncio.timeout(5):
        assert await process.wait() == 1


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
