# SPDX-License-Identifier: GPL-3.0-or-later
"""One engine host, as the daemon holds it: started, told what to run, heard, ended with all that it started."""

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec

from cortex_core import logs
from neuron import machine
from neuron.host import segments
from neuron.host.messages import Activity, Message, Order, Start, Warm, read_message, write_line

log = logs.get(__name__)

MAX_LINE_BYTES = 1024 * 1024
TAIL_LINES = 40
MAX_TAIL_LINE = 500
# After its process has ended, what it wrote last is in the pipe already.
LAST_WORDS_S = 1.0
KILLED_S = 5.0
# Into how many parts the time is divided that a host may be silent.
PARTS = 8
# A look goes through all processes of the machine.
LOOK_EVERY_S = 0.25
LOOKS = 16


class HostStartError(Exception):
    """The process could not even be started. The operator's fault: the interpreter is not there."""


class HostSilentError(Exception):
    """The host, or a process of it, has not shown that it lives for too long. The message says which."""


class HostProcess:
    """A running engine host, with its process group. `name` is for the log: the model's id, or what it is spared for."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._heard_all = asyncio.Event()
        self._exited = asyncio.Event()
        self._segments: set[Path] = set()
        self._stopped_s: float | None = None
        self._looked_s = 0.0
        self._has_begun = False
        self._watching: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        """Of the host, which leads a process group of its own."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self._exited.is_set()

    def watch(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to hear it, and to wait for its end."""
        self._watching = [tasks.create_task(self._sweep()), tasks.create_task(self._hear())]

    async def read(self) -> Message | None:
        """What the host says next; None: it has ended, or says what is no message."""
        assert self._process.stdout is not None  # noqa: S101 - started with pipes
        try:
            line = await self._process.stdout.readline()
            return read_message(line) if line else None
        except (ValueError, msgspec.DecodeError) as error:
            log.error("engine host says no message", model=self._name, reason=str(error))
            return None

    async def read_within(self, timeout_s: float) -> Message | None:
        """As `read`, of a host that is to show that it lives, once it has begun to: imports ahead are silent.

        Raises:
            HostSilentError: it, its engine, or a process of it was silent for `timeout_s`.
        """
        reading = asyncio.ensure_future(self.read())
        silent_parts = 0
        try:
            # In parts: where it was this daemon that stood still, one part has gone by, and not all of them.
            while silent_parts < PARTS:
                await asyncio.wait({reading}, timeout=timeout_s / PARTS)
                self._check_stopped(timeout_s)
                if reading.done():
                    self._has_begun = not isinstance(reading.result(), Warm)
                    return _check_silent(reading.result(), timeout_s)
                silent_parts += self._has_begun
            raise HostSilentError(f"it said nothing for {timeout_s:g} s")
        finally:
            reading.cancel()

    def _check_stopped(self, timeout_s: float) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < max(LOOK_EVERY_S, timeout_s / LOOKS):
            return
        self._looked_s = now_s
        stopped = machine.stopped_in(self.pid)
        if not stopped:
            self._stopped_s = None
        elif self._stopped_s is None:
            self._stopped_s = now_s
        elif now_s - self._stopped_s >= timeout_s:
            raise HostSilentError(f"its process {stopped[0]} was stopped for {timeout_s:g} s")

    async def why_ended(self) -> str:
        """How its process ended, and its last words, once both are known."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._process.wait()
                await self._heard_all.wait()
        return write_end(self._process.returncode, list(self._tail))

    async def stop(self, within_s: float) -> None:
        """Ask it to end; after `within_s`, and whatever it left behind, is killed. Nothing of it is left."""
        try:
            if not self._exited.is_set():
                self.note_shared_memory()
                self._process.stdin.close()  # type: ignore[union-attr]  # started with pipes
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()  # heard by one that has begun nothing yet
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(within_s):
                        await self._exited.wait()
        finally:
            if not self._exited.is_set():
                log.warning("engine host killed", model=self._name, pid=self.pid)
            self.kill_group()
            await self._finish()

    async def _finish(self) -> None:
        """Wait for the end of what was killed, and give back all that was held for it."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILLED_S):
                    await self._process.wait()
        finally:
            for task in self._watching:
                task.cancel()
            # Its pipes would stay open until the garbage collector comes by; there is no public way to close them.
            self._process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001
            self._segments |= segments.named_after(self.pid)
            self._sweep_shared_memory()

    def note_shared_memory(self) -> None:
        """Remember the segments that it has now: processes that are killed leave them behind."""
        self._segments |= machine.shared_memory_of(self.pid) | segments.named_after(self.pid)

    def _sweep_shared_memory(self) -> None:
        for segment in self._segments:
            with contextlib.suppress(OSError):
                segment.unlink()
                log.info(
                    "shared memory of a dead engine removed", model=self._name, path=str(segment)
                )

    def kill_group(self) -> None:
        """Kill every process that the host started and that still lives, and the host."""
        self.note_shared_memory()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def tell(self, order: Order) -> None:
        """Tell it what to do. A host that has died meanwhile is told by `read`."""
        if isinstance(order, Start):
            self._name = order.spec.model_id
        assert self._process.stdin is not None  # noqa: S101 - started with pipes
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(write_line(order))
            await self._process.stdin.drain()

    async def _sweep(self) -> None:
        """Wait for its end, then kill what it left: pipes that children hold open would never end.

        Nor would `Process.wait`, which outside of uvloop waits for the pipes as well.
        """
        await _until_exit(self._process)
        self._exited.set()
        self.kill_group()

    async def _hear(self) -> None:
        """Take what it writes to standard error, to its end."""
        assert self._process.stderr is not None  # noqa: S101 - started with pipes
        try:
            async for line in lines_of(self._process.stderr):
                self._tail.append(line)
                log.debug("engine host says", model=self._name, line=line)
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


def _check_silent(message: Message | None, timeout_s: float) -> Message | None:
    if isinstance(message, Activity) and message.silent_s >= timeout_s:
        raise HostSilentError(f"its engine did not answer for {timeout_s:g} s")
    return message


async def start_host(
    python: str, environ: Mapping[str, str], name: str, tasks: asyncio.TaskGroup
) -> HostProcess:
    """Run `PYTHON -m neuron.host`, which waits for orders. `stop` ends it.

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
    host = HostProcess(process, name)
    host.watch(tasks)
    return host
