# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that downloads, as the daemon holds it: started, told, heard, killed."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import IO

import msgspec

from neuron.harnesses.environment import OWN
from neuron.host_process import write_end
from neuron.weights.messages import Message, Order, read_message, write_line

MAX_TAIL_BYTES = 2000

_ENVIRON = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # The only token is the one that it is told.
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
}
# What is the daemon's alone; and whether to ask the network was decided before this process was started.
_NOT_ITS = (*OWN, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class Child:
    """A running download."""

    def __init__(self, process: asyncio.subprocess.Process, said: IO[bytes]) -> None:
        self._process = process
        self._said = said

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def tell(self, order: Order) -> None:
        """One line. A child that has died meanwhile is told by `read`."""
        assert self._process.stdin is not None  # noqa: S101 - started with pipes
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(write_line(order))
            await self._process.stdin.drain()

    async def read(self) -> Message | None:
        """What it says next; None: it has ended, or says what is no message."""
        assert self._process.stdout is not None  # noqa: S101 - started with pipes
        try:
            line = await self._process.stdout.readline()
            return read_message(line) if line else None
        except (ValueError, msgspec.DecodeError):
            return None

    async def why_ended(self) -> str:
        """How it ended, with its last words."""
        await self.kill()
        self._said.seek(0, 2)
        self._said.seek(max(0, self._said.tell() - MAX_TAIL_BYTES))
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return write_end(self._process.returncode, lines)

    async def kill(self) -> None:
        """End it now, if it has not ended. What it has fetched stays."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def open_child(environ: Mapping[str, str]) -> AsyncIterator[Child]:
    """Run `python -m neuron.weights.fetch` for as long as the context lasts."""
    kept = {name: value for name, value in environ.items() if name not in _NOT_ITS}
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "neuron.weights.fetch"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=said,
            start_new_session=True,
            env={**kept, **_ENVIRON},
        )
        child = Child(process, said)
        try:
            yield child
        finally:
            await child.kill()
