# SPDX-License-Identifier: GPL-3.0-or-later
"""One engine host, as the daemon holds it: started, told what to run, heard, ended with all that it started."""

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from cortex_core import logs
from neuron.host.messages import Message, Start, read_message, write_line

log = logs.get(__name__)

MAX_LINE_BYTES = 1024 * 1024
TAIL_LINES = 40
MAX_TAIL_LINE = 500
# After its process has ended, what it wrote last is in the pipe already.
LAST_WORDS_S = 1.0
KILLED_S = 5.0


class HostStartError(Exception):
    """The process could not even be started. The operator's fault: the interpreter is not there."""


class HostProcess:
    """A running engine host."""

    def __init__(self, process: asyncio.subprocess.Process, model_id: str) -> None:
        self._process = process
        self._model_id = model_id
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._heard_all = asyncio.Event()
        self._exited = asyncio.Event()

    @property
    def pid(self) -> int:
        """Of the host, which leads a process group of its own."""
        return self._process.pid

    async def read(self) -> Message | None:
        """What the host says next; None: it has ended, or says what is no message."""
        assert self._process.stdout is not None  # noqa: S101 - started with pipes
        try:
            line = await self._process.stdout.readline()
            return read_message(line) if line else None
        except (ValueError, msgspec.DecodeError) as error:
            log.error("engine host says no message", model=self._model_id, reason=str(error))
            return None

    async def why_ended(self) -> str:
        """How its process ended, and its last words, once both are known."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._process.wait()
                await self._heard_all.wait()
        return write_end(self._process.returncode, list(self._tail))

    async def stop(self, within_s: float) -> None:
        """Ask it to end; after `within_s`, and whatever it left behind, is killed."""
        try:
            if not self._exited.is_set():
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(within_s):
                        await self._exited.wait()
        finally:
            if not self._exited.is_set():
                log.warning("engine host killed", model=self._model_id, pid=self.pid)
            self.kill_group()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILLED_S):
                await self._process.wait()

    def kill_group(self) -> None:
        """Kill every process that the host started and that still lives, and the host."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def tell(self, start: Start) -> None:
        """Tell it what to run. A host that has died meanwhile is told by `read`."""
        assert self._process.stdin is not None  # noqa: S101 - started with pipes
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(write_line(start))
            await self._process.stdin.drain()

    async def sweep(self) -> None:
        """Wait for its end, then kill what it left: pipes that children hold open would never end.

        Nor would `Process.wait`, which outside of uvloop waits for the pipes as well.
        """
        await _until_exit(self._process)
        self._exited.set()
        self.kill_group()

    async def hear(self) -> None:
        """Take what it writes to standard error, to its end."""
        assert self._process.stderr is not None  # noqa: S101 - started with pipes
        try:
            async for line in lines_of(self._process.stderr):
                self._tail.append(line)
                log.debug("engine host says", model=self._model_id, line=line)
        finally:
            self._heard_all.set()


async def _until_exit(process: asyncio.subprocess.Process) -> None:
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:  # it has ended already, or the kernel has no such thing
        await process.wait()
        return
    loop, exited = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, exited.set)
    try:
        await exited.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines without their ends, long ones cut."""
    while True:
        try:
            raw = await stream.readline()
        except ValueError:  # longer than the reader holds; it has dropped it
            continue
        if not raw:
            return
        line = raw.decode("utf-8", "replace").rstrip()
        if line:
            yield line[:MAX_TAIL_LINE]


def write_end(exit_code: int | None, tail: list[str]) -> str:
    """How a process ended, in words, with the last line of what it said."""
    if exit_code is None:
        how = "its process does not answer"
    elif exit_code < 0:
        how = f"its process was killed by {_signal_name(-exit_code)}"
    else:
        how = f"its process ended with exit code {exit_code}"
    return f"{how}; its last words: {tail[-1]}" if tail else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@asynccontextmanager
async def open_host(
    python: str,
    start: Start,
    environ: Mapping[str, str],
    *,
    stop_within_s: float,
    tasks: asyncio.TaskGroup,
) -> AsyncIterator[HostProcess]:
    """Run `PYTHON -m neuron.host` for as long as the context lasts.

    Raises:
        HostStartError: the interpreter cannot be run.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            python,
            *("-m", "neuron.host"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            start_new_session=True,
            env=dict(environ),
        )
    except OSError as error:
        raise HostStartError(f"{python} cannot be run: {error.strerror}") from None
    host = HostProcess(process, start.spec.model_id)
    watching = [tasks.create_task(host.sweep()), tasks.create_task(host.hear())]
    try:
        await host.tell(start)
        yield host
    finally:
        await host.stop(stop_within_s)
        for task in watching:
            task.cancel()
