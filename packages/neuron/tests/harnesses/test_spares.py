# SPDX-License-Identifier: GPL-3.0-or-later
"""Spares for echo engines, which have nothing to import: who gets one, and what becomes of it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from neuron.harnesses.spares import Recipe, Spares
from neuron.host.messages import Preload, Warm

pytestmark = pytest.mark.slow

RECIPE = Recipe(python=sys.executable, preload=Preload(harness="echo"))
OTHER = Recipe(python=sys.executable, preload=Preload(harness="echo", settings={"a": 1}))


@pytest.fixture
async def spares() -> AsyncIterator[Spares]:
    async with asyncio.TaskGroup() as tasks:
        made = Spares(tasks)
        yield made
        await made.stop()


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_a_spare_does_its_imports_and_is_used_once(spares: Spares) -> None:
    await spares.refill(RECIPE)
    host = spares.take(RECIPE)
    assert host is not None
    assert await host.read() == Warm()
    assert spares.take(RECIPE) is None
    await host.stop(2)


async def test_a_spare_of_another_recipe_is_left_alone(spares: Spares) -> None:
    await spares.refill(RECIPE)
    assert spares.take(OTHER) is None
    taken = spares.take(RECIPE)
    assert taken is not None
    await taken.stop(2)


async def test_there_is_one_at_most(spares: Spares) -> None:
    await asyncio.gather(*(spares.refill(RECIPE) for _ in range(5)))
    first = spares.take(RECIPE)
    assert first is not None
    assert spares.take(RECIPE) is None
    await first.stop(2)


async def test_a_new_recipe_ends_the_old_spare(spares: Spares) -> None:
    await spares.refill(RECIPE)
    old = spares.take(RECIPE)
    assert old is not None
    await spares.refill(RECIPE)
    await spares.refill(OTHER)
    assert spares.take(RECIPE) is None
    new = spares.take(OTHER)
    assert new is not None
    await asyncio.gather(old.stop(2), new.stop(2))


async def test_a_dead_spare_is_nobody_s(spares: Spares) -> None:
    await spares.refill(RECIPE)
    taken = spares.take(RECIPE)
    assert taken is not None
    await spares.refill(RECIPE)
    second = spares._host
    assert second is not None
    os.kill(second.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while second.is_alive:
            await asyncio.sleep(0.005)
    assert spares.take(RECIPE) is None
    await taken.stop(2)


async def test_stopping_ends_the_spare_and_makes_no_other() -> None:
    async with asyncio.TaskGroup() as tasks:
        spares = Spares(tasks)
        await spares.refill(RECIPE)
        host = spares._host
        assert host is not None
        await spares.stop()
        assert is_gone(host.pid)
        await spares.refill(RECIPE)
        assert spares.take(RECIPE) is None


async def test_an_interpreter_that_is_not_there_is_no_fault(spares: Spares) -> None:
    absent = Recipe(python="/no/python", preload=Preload(harness="echo"))
    await spares.refill(absent)
    assert spares.take(absent) is None
