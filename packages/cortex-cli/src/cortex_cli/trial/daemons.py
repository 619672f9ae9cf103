# SPDX-License-Identifier: GPL-3.0-or-later
"""Daemons as children of this process: started with their own configuration, watched, ended for sure."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TextIO

import click

from cortex_core.errors import OperatorError
from cortex_core.http import server

# More than `drain_s` in plan.py and the end of an engine (`stop_timeout_s`) together.
END_S = 40.0
LAST_LINES = 20
FOLLOW_S = 0.2
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class DaemonEndedError(click.ClickException):
    """A daemon of the trial ended though nobody asked it to."""


class Daemon:
    """One running child and its log."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """Of the child, which leads a process group of its own."""
        return self._process.pid

    async def watch(self) -> None:
        """Wait for ever.

        Raises:
            DaemonEndedError: it ended.
        """
        exit_code = await self._process.wait()
        raise DaemonEndedError(
            f"The {self.name} ended with exit code {exit_code}. Its last lines:\n{self.last_lines()}"
        )

    def last_lines(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-LAST_LINES:]) or "  (none)"

    async def end(self, within_s: float = END_S) -> None:
        """Ask it to stop; kill what is left of its process group after `within_s`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(within_s):
                await self._process.wait()
        except TimeoutError:
            pass  # the group is killed below
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()


@asynccontextmanager
async def open_daemon(name: str, module: str, config: Path) -> AsyncIterator[Daemon]:
    """Run `python -m MODULE serve --config CONFIG` for as long as the context lasts."""
    log = config.with_suffix(".log")
    with log.open("wb") as file:
        # A session of its own: Ctrl-C must reach this process alone, which then ends the daemons in order.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", module, "serve", "--config", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    daemon = Daemon(name, process, log)
    try:
        yield daemon
    finally:
        await daemon.end()


def _end_with_parent() -> None:
    """Of a parent that is killed, and can end nobody, the kernel tells: as SIGTERM."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def follow(daemon: Daemon) -> None:
    """Copy a daemon's log to standard error, as it grows, for ever."""
    with daemon.log.open(errors="replace") as file:
        try:
            while True:
                _copy(file)
                await asyncio.sleep(FOLLOW_S)
        finally:
            _copy(file)  # what came since the last look


def _copy(file: TextIO) -> None:
    if new := file.read():
        sys.stderr.write(new)
        sys.stderr.flush()


def check_free(addresses: dict[str, str]) -> None:
    """Nothing else listens there.

    Raises:
        OperatorError: something does; names the address and the option that moves ours.
    """
    for option, address in addresses.items():
        try:
            server.bind(address).close()
        except OperatorError as error:
            raise OperatorError(message=f"{error.message} ({option} takes another port.)") from None
