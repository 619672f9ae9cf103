# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from cortex_cli.trial.daemons import Daemon, DaemonEndedError, check_free, open_daemon
from cortex_core.errors import OperatorError

Open = Callable[[str], AbstractAsyncContextManager[Daemon]]
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
time.sleep(60)
"""
GENTLE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("bye", flush=True), sys.exit(0)))
print("up", sys.argv[1:], flush=True)
time.sleep(60)
"""


@pytest.fixture
def open_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Runs a script where a daemon would be run: as a module, with its words."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    @asynccontextmanager
    async def opened(script: str) -> AsyncIterator[Daemon]:
        (tmp_path / "stand_in.py").write_text(script)
        async with open_daemon("stand-in", "stand_in", tmp_path / "config.toml") as daemon:
            yield daemon

    return opened


async def until_said(daemon: Daemon, word: str) -> str:
    async with asyncio.timeout(20):
        while word not in (said := daemon.log.read_text()):
            await asyncio.sleep(0.01)
    return said


async def test_a_daemon_is_served_its_configuration_and_asked_to_stop(
    open_script: Open, tmp_path: Path
) -> None:
    async with open_script(GENTLE) as daemon:
        said = await until_said(daemon, "up")
        assert f"['serve', '--config', '{tmp_path / 'config.toml'}']" in said
    assert daemon.log.read_text().endswith("bye\n")


async def test_one_that_ends_unasked_is_told_with_its_last_words(open_script: Open) -> None:
    async with open_script("import sys; print('no room'); sys.exit(3)") as daemon:
        with pytest.raises(
            DaemonEndedError, match=r"stand-in ended with exit code 3(.|\n)*  no room"
        ):
            await daemon.watch()


async def test_one_that_does_not_stop_is_killed_with_its_children(open_script: Open) -> None:
    async with open_script(STUBBORN) as daemon:
        child = int((await until_said(daemon, "child")).split()[1])
        await daemon.end(within_s=0.1)
        async with asyncio.timeout(5):
            while _lives(child):
                await asyncio.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


async def test_ctrl_c_does_not_reach_a_daemon(open_script: Open) -> None:
    async with open_script(GENTLE) as daemon:
        await until_said(daemon, "up")
        assert os.getpgid(daemon.pid) != os.getpgrp()


def test_an_address_in_use_is_told_with_the_option_that_moves_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(OperatorError, match=r"is in use.*--port-neuron takes another port"):
            check_free({"--port-neuron": address})
    check_free({"--port-neuron": address})
