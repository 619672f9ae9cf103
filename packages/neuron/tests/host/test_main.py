# SPDX-License-Identifier: GPL-3.0-or-later
"""The host as a process of its own, spoken to over its pipes."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cortex_core.control import ModelSpec
from cortex_core.http.client import Client, read_all
from neuron.host.messages import (
    Activity,
    Failed,
    Message,
    Phase,
    Ready,
    Start,
    read_message,
    write_line,
)
from neuron.run_dir import open_run_dir

pytestmark = pytest.mark.slow


class Host:
    """A host process, its pipes and its socket."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = self.engine = folder
        self.socket = str(folder / "http")

    async def start(self, model_id: str, harness: str = "echo") -> None:
        spec = ModelSpec(model_id=model_id, harness=harness)
        assert self.process.stdin
        self.process.stdin.write(
            write_line(Start(spec=spec, socket=self.socket, run_dir=str(self.engine)))
        )
        await self.process.stdin.drain()

    async def read(self) -> Message | None:
        assert self.process.stdout
        line = await self.process.stdout.readline()
        return read_message(line) if line else None

    async def until(self, kind: type[Message]) -> Message:
        async with asyncio.timeout(10):
            while not isinstance(message := await self.read(), kind):
                assert message is not None
        return message

    async def end(self) -> int:
        async with asyncio.timeout(10):
            return await self.process.wait()


@asynccontextmanager
async def open_host() -> AsyncIterator[Host]:
    with tempfile.TemporaryDirectory(prefix="nt") as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "neuron.host"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield Host(process, Path(folder))
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with open_host() as opened:
        yield opened


async def test_it_serves_on_its_socket_when_it_says_so(host: Host) -> None:
    await host.start("echo/m")
    assert isinstance(await host.until(Phase), Phase)
    ready = await host.until(Ready)
    assert isinstance(ready, Ready)
    assert ready.capabilities == ["text"]
    client = Client(f"unix:{host.socket}")
    body = b'{"model":"echo/m","prompt":"a b"}'
    async with client.open("POST", "/v1/completions", body=body) as reply:
        assert (reply.status, b'"text":"a b"' in await read_all(reply)) == (200, True)
    await client.close()


async def test_it_tells_what_it_does_when_that_changes_and_as_a_heartbeat(host: Host) -> None:
    await host.start("echo/m?token_s=0.05&tokens=8")
    await host.until(Ready)
    client = Client(f"unix:{host.socket}")
    body = b'{"model":"echo/m","prompt":"a b"}'
    async with client.open("POST", "/v1/completions", body=body) as reply:
        await read_all(reply)
    await client.close()
    seen: list[int] = []
    async with asyncio.timeout(5):
        while len(seen) < 4:
            message = await host.read()
            assert isinstance(message, Activity)
            seen.append(message.running)
    assert 1 in seen
    assert seen[-2:] == [0, 0]


async def test_it_ends_when_the_daemon_s_pipe_closes(host: Host) -> None:
    await host.start("echo/m")
    await host.until(Ready)
    assert host.process.stdin
    host.process.stdin.close()
    assert await host.end() == 0


async def test_it_ends_even_while_it_starts(host: Host) -> None:
    await host.start("echo/m?load_s=60")
    await host.until(Phase)
    assert host.process.stdin
    host.process.stdin.close()
    assert await host.end() == 0


async def test_one_that_is_stopped_is_ended_by_the_daemon_that_follows(host: Host) -> None:
    (host.folder / "engine-1").mkdir()
    host.engine = host.folder / "engine-1"
    await host.start("echo/m")
    await host.until(Ready)
    host.process.send_signal(signal.SIGSTOP)
    with open_run_dir(str(host.folder)):
        assert await host.end() == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_goes_on_when_the_whole_service_is_told_to_end(
    host: Host, number: signal.Signals
) -> None:
    await host.start("echo/m?load_s=0.2")
    await host.until(Phase)
    for _ in range(2):
        host.process.send_signal(number)
    await host.until(Ready)
    host.process.send_signal(number)
    for _ in range(2):
        await host.until(Activity)


async def test_it_ends_without_a_word_when_nothing_is_wanted(host: Host) -> None:
    assert host.process.stdin
    host.process.stdin.close()
    assert await host.end() == 0
    assert await host.read() is None


def test_it_ends_though_nobody_reads_what_is_left_to_say() -> None:
    script = """
import os, sys
from neuron.host.__main__ import end
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(writer)
os.close(reader)
sys.stderr.write("no line's end, so it waits to be written")
end(0)
"""
    environ = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environ, check=False, timeout=30)
    assert done.returncode == 0


def test_what_libraries_print_is_no_message() -> None:
    script = """
import os, subprocess
from neuron.host.__main__ import take_standard_output
pipe = take_standard_output()
print("noise", flush=True)
subprocess.run(["echo", "noise of a child"], check=True)
os.write(pipe, b"message")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, timeout=30
    )
    assert done.stdout == b"message"
    assert done.stderr == b"noise\nnoise of a child\n"


@pytest.mark.parametrize(
    ("model_id", "kind", "message"),
    [
        ("echo/m?fail=load", "engine_start_failed", "it was asked to fail, by `fail=load`"),
        ("echo/m?tokns=1", "invalid_spec", "tokns"),
    ],
)
async def test_a_start_that_fails_is_told_with_its_cause(
    host: Host, model_id: str, kind: str, message: str
) -> None:
    await host.start(model_id)
    failed = await host.until(Failed)
    assert isinstance(failed, Failed)
    assert failed.kind == kind
    assert message in failed.message
    assert await host.end() == 1
