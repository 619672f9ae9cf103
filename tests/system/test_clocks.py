# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines whose clocks differ by hours: times on the wire are durations, so nothing becomes of that."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

HOURS_S = 5 * 3600
# Read by Python at its start: to this daemon and its engines it is hours earlier or later than it is.
ELSEWHEN = "import time\n_now = time.time\ntime.time = lambda: _now() + ({shift_s})\n"
NEURON = (
    '[[harnesses]]\nname = "vllm"\n[[harnesses]]\nname = "echo"\n'
    '[harness.vllm]\nwarm_spare = false\nplatform = "cpu"\ncpu_budget_mb = 4096\n'
)
MODELS = [f"echo/m{n}" for n in range(3)]
CATALOGUE = "".join(
    f'[[models]]\nid = "{model}"\nharness = "echo"\nvram_mb = 3000\n' for model in MODELS
)


def elsewhen(folder: Path, shift_s: int) -> dict[str, str]:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ELSEWHEN.format(shift_s=shift_s))
    return {"PYTHONPATH": str(folder)}


async def test_neurons_whose_clocks_are_hours_off_are_as_good_as_others(
    fleet: Any, tmp_path: Path
) -> None:
    early, late = await asyncio.gather(
        fleet.neuron("a", NEURON, **elsewhen(tmp_path / "early", -HOURS_S)),
        fleet.neuron("b", NEURON, **elsewhen(tmp_path / "late", HOURS_S)),
    )
    gateway = await fleet.gateway(
        early, late, models=CATALOGUE, config="[eviction]\nmin_residency_s = 0\n"
    )
    answers = [await gateway.chat(model) for model in (*MODELS, MODELS[0])]
    # their clocks are off, and what they stamp shows it
    created = [answer["created"] for answer in answers]
    assert max(created) - min(created) > HOURS_S
    # the third displaced the first, which was not used for longest, and that was woken in its place again
    assert await gateway.counts("cortex_evictions_total") == {MODELS[0]: 1.0, MODELS[2]: 1.0}
    told = await gateway.get("/fleet")
    for node in told["nodes"]:
        assert (node["up"], node["misses"], node["problem"]) == (True, 0, None)
        assert 0 <= node["seen_s_ago"] < 5
        assert all(0 < model["load_s"] < 60 for model in node["models"])
