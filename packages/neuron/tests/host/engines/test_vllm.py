# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the vLLM engine needs no vLLM; the rest is tested on the real one, in tests/engine."""

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from neuron.host.engines.vllm import LOOK_EVERY_S, VllmEngine, _unless_one_ends


class Hanging:
    """An engine of vLLM's, one of whose threads does not come to an end."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def stop(self, timeout_s: float) -> None:
        self.over.wait(30)


@pytest.mark.slow
async def test_a_thread_that_does_not_end_keeps_no_engine(tmp_path: Path) -> None:
    engine, running = VllmEngine(stop_s=0.0), Hanging()
    scratch = tmp_path / "vllm"
    scratch.mkdir()
    engine._running, engine._scratch = running, scratch
    try:
        async with asyncio.timeout(5):
            await engine.stop()
        assert not scratch.exists()
    finally:
        running.over.set()


RANK = """
import sys
from pathlib import Path
Path("/proc/self/comm").write_text("VLLM::Worker")
print(flush=True)
sys.stdin.read()
"""


async def start_rank() -> asyncio.subprocess.Process:
    command, pipe = (sys.executable, "-c", RANK), asyncio.subprocess.PIPE
    rank = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert rank.stdout is not None
    await rank.stdout.readline()
    return rank


@pytest.mark.slow
async def test_a_start_is_given_up_when_a_process_of_it_ends_and_for_no_other() -> None:
    other = await start_rank()
    ranks = []

    async def start() -> None:
        other.kill()
        ranks.append(await start_rank())
        await asyncio.sleep(3 * LOOK_EVERY_S)  # it is seen
        ranks[0].kill()
        await asyncio.sleep(30)

    async with asyncio.timeout(20):
        with pytest.raises(RuntimeError, match="its process VLLM::Worker") as caught:
            await _unless_one_ends(start())
    assert str(ranks[0].pid) in str(caught.value)


async def test_a_start_gives_what_it_gives() -> None:
    assert await _unless_one_ends(asyncio.sleep(0, "up")) == "up"
