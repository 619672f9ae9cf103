# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers to measure: real processes on free ports of loopback, ended with all that they started whatever happens."""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bench.answers import Answer
from bench.client import HOST, ask
from bench.figures import FailedError

from neuron.harnesses.environment import environ

START_S = 300.0
STOP_S = 30.0
TAIL_BYTES = 3000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Server:
    """A running server."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self._process = process
        self.port = port
        self._log = log

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    async def until_well(
        self, method: str, path: str, body: object = None, *, every_s: float = 0.02
    ) -> Answer:
        """Ask until the answer is 200: while nothing listens, and while the server says that it may be asked again.

        Raises:
            FailedError: it has ended, it says that asking again is of no use, or time is up.
        """
        try:
            async with asyncio.timeout(START_S):
                return await self._until_well(method, path, body, every_s)
        except TimeoutError:
            raise self._failed(f"{method} {path} gave nothing within {START_S:g} s") from None

    async def _until_well(self, method: str, path: str, body: object, every_s: float) -> Answer:
        while True:
            if self._process.returncode is not None:
                raise self._failed(f"it ended with exit code {self._process.returncode}")
            with contextlib.suppress(OSError):
                answer = await ask(self.port, method, path, body)
                if answer.status == 200:
                    return answer
                if not answer.may_be_asked_again:
                    said = answer.body[:1000].decode("utf-8", "replace")
                    raise self._failed(f"{method} {path} gave {answer.status}: {said}")
            await asyncio.sleep(every_s)

    def _failed(self, what: str) -> FailedError:
        tail = self._log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace")
        return FailedError(f"{what}\nThe end of its log:\n{tail}")

    async def end(self) -> None:
        """Have it end in order; after STOP_S it is killed."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self._process.wait()


@asynccontextmanager
async def open_server(
    command: Callable[[int], Sequence[str]], changes: Mapping[str, str | None], folder: Path
) -> AsyncIterator[Server]:
    """Start one; it is not up yet.

    Args:
        command: what to run, given the port to listen on.
        changes: variables of its environment beside our own; None removes one.
        folder: where it may write.
    """
    port = free_port()
    log = folder / f"{port}.log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command(port),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder,
            env=environ(changes),
            # A Ctrl-C is for us, who end it in order; should we be killed ourselves, it is told.
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    server = Server(process, port, log)
    try:
        yield server
    finally:
        await server.end()


def program(name: str) -> str:
    """A command of the environment that runs this."""
    return str(Path(sys.executable).parent / name)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
