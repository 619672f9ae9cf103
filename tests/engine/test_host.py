# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine in its host, as the daemon runs it: one process group that ends whole and leaves nothing behind."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex_core.http.client import Client, read_all
from neuron.host.messages import Activity, Failed, Message, Phase, Ready, read_message, write_line

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only looked at
CHAT = "/v1/chat/completions"
ASKED = {
    "messages": [{"role": "user", "content": "Which port does the gateway use?"}],
    "temperature": 0,
}
LONG = {**ASKED, "ignore_eos": True, "max_tokens": 4000, "stream": True}


class Host:
    """A host process and what it says."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path) -> None:
        self.process = process
        self.client = Client(f"unix:{socket}")

    async def until(self, wanted: Callable[[Message], bool], within_s: float) -> Message:
        assert self.process.stdout is not None
        async with asyncio.timeout(within_s):
            while True:
                line = await self.process.stdout.readline()
                assert line, "the host has ended"
                if wanted(message := read_message(line)):
                    return message

    async def ask(self, fields: Any) -> tuple[int, Any]:
        body = msgspec.json.encode(fields)
        async with self.client.open("POST", CHAT, headers=[], body=body) as reply:
            return reply.status, msgspec.json.decode(await read_all(reply))


@pytest.fixture
async def host(make_start: Any) -> AsyncIterator[Host]:
    # Not tmp_path: paths of unix sockets have room for about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="cx") as folder:
        start = make_start(Path(folder))
        before = set(SHARED_MEMORY.iterdir())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "neuron.host"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(write_line(start))
        made = Host(process, Path(start.socket))
        try:
            yield made
        finally:
            await made.client.close()
            process.stdin.close()
            async with asyncio.timeout(20):
                await process.wait()
        assert not _group(process.pid)
        if process.returncode != -signal.SIGKILL:  # else the daemon sweeps
            assert {file.name for file in Path(folder).iterdir()} <= {"socket", "host"}
        assert not [f for f in set(SHARED_MEMORY.iterdir()) - before if f.name.startswith("vllm")]


def _group(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == leader:
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return found


def is_ready(message: Message) -> bool:
    assert not isinstance(message, Failed), message
    return isinstance(message, Ready)


async def test_a_host_tells_how_far_its_start_is_and_who_leaves_and_ends(host: Host) -> None:
    told = 0
    ratios: list[float] = []

    def count(message: Message) -> bool:
        nonlocal told
        told += isinstance(message, Activity)
        if isinstance(message, Phase) and message.ratio is not None:
            assert message.phase == "loading"
            ratios.append(message.ratio)
        return is_ready(message)

    await host.until(count, 60)
    assert told > 3
    assert len(ratios) > 3
    assert ratios == sorted(ratios)
    assert 0.9 < ratios[-1] <= 1, "of the weights, one file or many"
    status, answer = await host.ask(ASKED)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "The gateway listens on port 31313."
    body = msgspec.json.encode(LONG)
    async with host.client.open("POST", CHAT, headers=[], body=body) as reply:
        await reply.read()
        await host.until(lambda m: isinstance(m, Activity) and m.running == 1, 5)
    await host.until(lambda m: isinstance(m, Activity) and m.running == 0, 1)
    assert host.process.stdin is not None
    host.process.stdin.close()
    async with asyncio.timeout(20):
        assert await host.process.wait() == 0


async def test_a_killed_host_takes_its_engine_along(host: Host) -> None:
    await host.until(is_ready, 60)
    host.process.kill()
    async with asyncio.timeout(10):
        while _group(host.process.pid):
            await asyncio.sleep(0.05)
