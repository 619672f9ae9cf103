# SPDX-License-Identifier: GPL-3.0-or-later
"""What files say of models that are not loaded: asked of the neurons, told in GET /v1/models."""

import asyncio
from typing import Any

import pytest
import structlog

from cortex_core.catalogue import Model
from cortex_core.node import Limits
from cortex_core.testing import make_device, make_discovery, make_state
from cortex_core.weights import WeightsState
from cortex_gateway.stock import EVERY_S, Stock

TOLD = WeightsState(
    id="huggingface:org/m",
    scheme="huggingface",
    complete=True,
    capabilities=["text", "tools"],
    limits=Limits(context=8192, output=8192),
)
GPU = make_discovery(make_device(0, 24_000))
DECLARED = Model(id="org/m", harness="vllm")


async def entry_of(fleet: Any, model: str = "org/m") -> Any:
    return await fleet.get(f"/v1/models/{model}")


async def until_told(fleet: Any, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while sum(n.weights is not None for n in fleet.gateway.fleet.view().nodes) < count:
            await asyncio.sleep(0.001)


async def test_a_model_that_is_not_loaded_tells_what_its_files_say(fake: Any, start: Any) -> None:
    neuron = fake(found=GPU)
    neuron.weights = [TOLD]
    async with start(neuron, models=[DECLARED]) as fleet:
        await until_told(fleet)
        entry = await entry_of(fleet)
    assert (entry["loaded"], entry["residency"]) == (False, "on_disk")
    assert entry["capabilities"] == ["text", "tools"]
    assert (entry["max_model_len"], entry["max_output_tokens"]) == (8192, 8192)


@pytest.mark.parametrize(
    ("declared", "files", "residency", "context"),
    [
        (Model(id="org/m", max_model_len=1000), TOLD, "on_disk", 1000),
        (Model(id="org/m", max_model_len=99_999), TOLD, "on_disk", 8192),
        (Model(id="org/m", source="huggingface"), TOLD, "on_disk", 8192),
        (Model(id="org/m", source="mirror"), TOLD, "remote", None),
        (Model(id="org/other"), TOLD, "remote", None),
        (Model(id="org/m"), WeightsState(id="huggingface:org/m"), "remote", None),
        (Model(id="org/m", harness="echo"), TOLD, None, None),
    ],
)
async def test_files_count_for_the_model_that_they_are_of(
    fake: Any, start: Any, declared: Model, files: WeightsState, residency: str | None, context: Any
) -> None:
    neuron = fake(found=GPU)
    neuron.weights = [files]
    async with start(neuron, models=[declared]) as fleet:
        await until_told(fleet)
        entry = await entry_of(fleet, declared.id)
    assert (entry.get("residency"), entry.get("max_model_len")) == (residency, context)


async def test_what_an_engine_says_goes_before_what_files_say(fake: Any, start: Any) -> None:
    limits = Limits(context=4096, output=512)
    neuron = fake(make_state("org/m", capabilities=["text"], limits=limits), found=GPU)
    neuron.weights = [TOLD]
    async with start(neuron, models=[DECLARED]) as fleet:
        await until_told(fleet)
        entry = await entry_of(fleet)
    assert (entry["residency"], entry["capabilities"]) == ("serving", ["text"])
    assert (entry["max_model_len"], entry["max_output_tokens"]) == (4096, 512)


async def test_what_cannot_run_says_so_with_the_arithmetic_and_what_its_files_say(
    fake: Any, start: Any
) -> None:
    neuron = fake(found=GPU)
    neuron.weights = [TOLD]
    huge = Model(id="org/m", min_device_vram_mb=80_000)
    async with start(neuron, models=[huge]) as fleet:
        await until_told(fleet)
        entry = await entry_of(fleet)
    assert entry["reason"] == "a: needs 1 device(s) of 80000 MiB, has 24000 MiB"
    assert entry["capabilities"] == ["text", "tools"]


async def test_a_neuron_is_asked_again_after_a_while_and_when_it_comes_back(
    fake: Any, start: Any
) -> None:
    neuron = fake(found=GPU)
    async with start(neuron, models=[DECLARED]) as fleet:
        await until_told(fleet)
        assert (await entry_of(fleet))["residency"] == "remote"
        neuron.weights = [TOLD]
        began_s = asyncio.get_running_loop().time()
        await fleet.gateway.stock.ask_due(began_s)
        assert (await entry_of(fleet))["residency"] == "remote"
        await fleet.gateway.stock.ask_due(began_s + 2 * EVERY_S)
        assert (await entry_of(fleet))["residency"] == "on_disk"


async def test_a_neuron_that_is_too_old_to_tell_says_nothing(fake: Any, start: Any) -> None:
    neuron = fake(found=GPU)
    neuron.weights = "no list"
    async with start(neuron, models=[DECLARED]) as fleet:
        await fleet.gateway.stock.ask_due(1e9)
        entry = await entry_of(fleet)
    assert "residency" not in entry
    assert "capabilities" not in entry


async def test_while_nobody_is_there_to_tell_no_model_s_files_are_called_missing(
    fake: Any, start: Any
) -> None:
    neuron = fake(found=GPU)
    neuron.weights = [TOLD]
    async with start(neuron, models=[DECLARED]) as fleet:
        await until_told(fleet)
        neuron.down = True
        for _ in range(3):
            await fleet.poll()
        entry = await entry_of(fleet)
    assert "residency" not in entry


async def test_a_fault_of_ours_does_not_end_it() -> None:
    broken: Any = None
    with structlog.testing.capture_logs() as said:
        asking = asyncio.create_task(Stock(broken, {}).run())
        async with asyncio.timeout(5):
            while not said:
                await asyncio.sleep(0)
        assert not asking.done()
        asking.cancel()
    assert said[0]["event"] == "asking for files failed"
