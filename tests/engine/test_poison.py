# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine whose weights turn into no numbers while it runs: it goes on, and must not."""

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
