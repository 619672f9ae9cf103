# SPDX-License-Identifier: GPL-3.0-or-later
"""What each step leaves of memory is told where somebody reads it, and by nobody else."""

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CONFIG = "[harness.vllm]\nwarm_spare = false\nkv_cache_mb = 64\n"
RANKS = 2


@pytest.mark.parametrize("level", ["trace", "debug"])
async def test_steps_are_told_at_the_level_trace_alone(fleet: Any, level: str) -> None:
    daemon = await fleet.neuron(config=f'log_level = "{level}"\n{CONFIG}')
    spec = {"model_id": "helexa/demo", "tensor_parallel": RANKS}
    status, _, body = await daemon.post("/models/load", spec)
    assert status == 200, body
    await daemon.chat("helexa/demo", "Which port does the gateway use?", max_tokens=8)
    await daemon.until("/health", lambda _: has_told(daemon) or level != "trace")
    steps = steps_of(daemon)
    assert ({step["rank"] for step in steps}) == (set(range(RANKS)) if level == "trace" else set())
    assert all(step["vram_free_mb"] > 0 and step["model"] == "helexa/demo" for step in steps)


def steps_of(daemon: Any) -> list[dict[str, Any]]:
    lines = [line for line in daemon.log.splitlines() if line.startswith("{")]
    return [line for line in map(json.loads, lines) if line["event"] == "step"]


def has_told(daemon: Any) -> bool:
    """A step reads the prompt, and one each writes a token; every rank takes part in all of them."""
    return len(steps_of(daemon)) >= RANKS * 8
