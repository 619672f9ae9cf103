# SPDX-License-Identifier: GPL-3.0-or-later
"""Tensor parallelism over two ranks on the CPU, through a whole neuron: the same answers, and nothing left behind."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from neuron.host.processes import descendants

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

DEMO = "helexa/demo"
CONFIG = 'log_level = "trace"\n[harness.vllm]\nwarm_spare = false\nkv_cache_mb = 64\n'
QUESTIONS = [
    "Which port does the gateway use?",
    "What is the capital of France?",
    "What is 2 + 3?",
    "Who are you?",
    "Count to twenty.",
]
SHARED_MEMORY = "/dev/shm/"  # noqa: S108 - only looked at


def segments(pid: int) -> set[Path]:
    """The shared memory that the processes under this one have."""
    found = set()
    for process in descendants(pid):
        try:
            lines = Path(f"/proc/{process}/maps").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        names = (line.split(maxsplit=5)[-1] for line in lines)
        found |= {Path(name) for name in names if name.startswith(SHARED_MEMORY)}
    return found


def steps_of(daemon: Any) -> list[dict[str, Any]]:
    """What each rank has told of each step: at the level trace alone."""
    lines = [line for line in daemon.log.splitlines() if line.startswith("{")]
    return [line for line in map(json.loads, lines) if line["event"] == "step"]


def read_message(answer: Any) -> tuple[str, str]:
    message = answer["choices"][0]["message"]
    return message["reasoning_content"], message["content"]


# What each rank tells of itself once it is up; hybrids add how many layers are of which kind.
CONSTRUCTED = set(
    """
    rank free_mb total_mb vocab_size hidden_size num_layers head_dim num_kv_heads max_position_embeddings
    kv_bytes_per_token
    """.split()
)


async def test_two_ranks_say_what_one_says_and_leave_nothing_behind(
    model: Any, open_fleet: Any
) -> None:
    alone = [read_message((await model.chat(text, max_tokens=120)).json) for text in QUESTIONS]
    async with open_fleet() as fleet:
        daemon = await fleet.neuron(config=CONFIG)
        status, error = await load(daemon, ranks=3)
        assert (status, error["error"]["code"]) == (422, "tp_infeasible")
        status, _ = await load(daemon, ranks=2)
        assert status == 200
        constructed = [line for line in daemon.log.splitlines() if "engine constructed" in line]
        assert [json.loads(line)["rank"] for line in constructed] == [0, 1]
        assert [json.loads(line)["num_kv_heads"] for line in constructed] == [1, 1]
        assert all(json.loads(line).keys() >= CONSTRUCTED for line in constructed)
        held = segments(daemon.pid)
        assert held
        said = await asyncio.gather(
            *(daemon.chat(DEMO, text, temperature=0, max_tokens=120) for text in QUESTIONS)
        )
        assert [read_message(answer) for answer in said] == alone
        await daemon.until(
            "/health", lambda _: {step["rank"] for step in steps_of(daemon)} == {0, 1}
        )
        assert all(step["vram_free_mb"] > 0 and step["model"] == DEMO for step in steps_of(daemon))
        await daemon.post("/models/unload", {"model_id": DEMO})
        assert descendants(daemon.pid) == {}
        assert not [segment for segment in held if segment.exists()]


async def load(daemon: Any, *, ranks: int) -> tuple[int, Any]:
    spec = {"model_id": DEMO, "tensor_parallel": ranks}
    status, _, body = await daemon.post("/models/load", spec)
    return status, json.loads(body)


async def test_a_hybrid_tells_how_many_layers_are_of_which_kind(model: Any) -> None:
    from neuron.host.engines.vllm_library import _count_layers

    kinds = ["linear_attention", "linear_attention", "full_attention"]
    assert _count_layers(kinds) == {"full_attention_layers": 1, "linear_layers": 2}
    assert _count_layers(["mamba", "full_attention"]) == {
        "full_attention_layers": 1,
        "linear_layers": 1,
    }
    assert _count_layers(["full_attention"]) == _count_layers([]) == {}
    assert "linear_layers" not in model.ready.ranks[0]
