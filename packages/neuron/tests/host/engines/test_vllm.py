# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the vLLM engine needs no vLLM; the rest is tested on the real one, in tests/engine."""

import asyncio
import threading
from pathlib import Path

import pytest

from neuron.host.engines.vllm import VllmEngine


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
