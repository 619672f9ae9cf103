# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine whose weights turn into no numbers while it runs: it goes on, and must not."""

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import neuron
from neuron.host.engine import PoisonedError
from neuron.host.processes import descendants

DEMO = Path(neuron.__file__).parent / "demo"
# A look at its numbers comes soon, and a loss is followed by a start at once.
CONFIG = """
[harness.vllm]
warm_spare = true
kv_cache_mb = 64
[supervision]
probe_interval_s = 0.5
[[default_models]]
model_id = "helexa/demo"
harness = "vllm"
"""
QUESTION = "Which port does the gateway use?"
CHAT = "/v1/chat/completions"
# A NaN as bfloat16 writes it.
NAN = b"\xc0\x7f"


def tensor_bytes(weights: Path, name: str) -> bytes:
    """One tensor of a safetensors file."""
    data = weights.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    begin, end = msgspec.json.decode(data[8 : 8 + length])[name]["data_offsets"]
    return data[8 + length + begin : 8 + length + end]


def writable(pid: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each part of a process's memory that it may write."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        if rights.startswith("rw"):
            begin, end = (int(part, 16) for part in span.split("-"))
            yield begin, end


def overwrite(pid: int, old: bytes, new: bytes) -> int:
    """Replace bytes in a process's memory wherever they are; how often they were found."""
    found = 0
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for begin, end in writable(pid):
            memory.seek(begin)
            try:
                data = memory.read(end - begin)
            except OSError:  # a guard page
                continue
            at = data.find(old)
            while at >= 0:
                memory.seek(begin + at)
                memory.write(new)
                found += 1
                at = data.find(old, at + 1)
    return found


@pytest.mark.parametrize(
    ("new", "written", "phase"),
    [(1, [], "prefill"), (0, [0], "prefill"), (0, [3, 1], "decode"), (2, [5], "mixed"), (0, [0, 7], "mixed")],
)  # fmt: skip
def test_a_step_is_named_by_what_it_does(new: int, written: list[int], phase: str) -> None:
    from neuron.host.engines.vllm_probe import name_phase  # it imports torch

    cached = SimpleNamespace(num_output_tokens=written)
    step = SimpleNamespace(scheduled_new_reqs=[object()] * new, scheduled_cached_reqs=cached)
    assert name_phase(step) == phase


async def test_output_that_is_no_number_is_told_with_the_health_of_the_logits(
    run_dir: Path, start_model: Any
) -> None:
    before = set(descendants(1))
    model = await start_model(run_dir)
    await model.chat("Which port does the gateway use?")
    await model.engine.probe()  # all is well
    (core,) = [
        pid for pid, name in descendants(1).items() if pid not in before and "EngineCor" in name
    ]
    norm = tensor_bytes(DEMO / "model.safetensors", "model.norm.weight")
    assert overwrite(core, norm, NAN * (len(norm) // 2))
    await model.chat("Which port does the gateway use?", max_tokens=8)
    with pytest.raises(PoisonedError, match="no numbers") as caught:
        await model.engine.probe()
    prefill, decode = caught.value.logits
    assert (prefill["phase"], decode["phase"]) == ("prefill", "decode")
    assert prefill["nan"] > 0
    assert decode["nan"] > 0
    assert prefill["finite_max"] == 0
    await model.engine.stop()


async def test_a_model_that_computes_no_numbers_is_started_again_and_answers_well(
    fleet: Any,
) -> None:
    daemon = await fleet.neuron(config=CONFIG)
    await daemon.until("/health", lambda health: health["activation"]["state"] == "ready", 300)
    well = await daemon.chat("helexa/demo", QUESTION, temperature=0)
    (core,) = [pid for pid, name in descendants(daemon.pid).items() if "EngineCor" in name]
    norm = tensor_bytes(DEMO / "model.safetensors", "model.norm.weight")
    assert overwrite(core, norm, NAN * (len(norm) // 2))
    asked = {"model": "helexa/demo", "messages": [{"role": "user", "content": QUESTION}]}
    work = asyncio.create_task(daemon.post(CHAT, {**asked, "max_tokens": 4000, "ignore_eos": True}))
    lost = await daemon.until("/models", lambda models: models[0]["status"] == "recovering", 30)
    assert "no numbers" in lost[0]["last_error"]
    assert '"kind": "engine_poisoned"' in daemon.log
    await daemon.until("/models", lambda models: models[0]["status"] == "loaded", 300)
    again = await daemon.chat("helexa/demo", QUESTION, temperature=0)
    assert again["choices"] == well["choices"]
    await work
