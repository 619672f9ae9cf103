# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked apart: its answer, its error, and an answer that comes when nobody is there any more."""

import asyncio
import threading

import pytest

from neuron.apart import ask_apart


async def test_an_answer_comes_back() -> None:
    assert await ask_apart(lambda: 3) == 3


async def test_what_it_raises_is_raised_where_it_is_awaited() -> None:
    def fail() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await ask_apart(fail)


async def test_who_waits_no_longer_is_not_told() -> None:
    ends = threading.Event()
    asking = ask_apart(ends.wait)
    asking.cancel()
    ends.set()
    assert await ask_apart(lambda: 1) == 1
    assert asking.cancelled()


def test_an_answer_after_the_end_of_the_loop_is_nobody_s() -> None:
    ends, answered = threading.Event(), threading.Event()

    def answer() -> None:
        ends.wait()
        answered.set()

    async def ask() -> None:
        ask_apart(answer)

    asyncio.run(ask())
    (thread,) = [each for each in threading.enumerate() if each.name == "apart"]
    ends.set()
    thread.join(5)
    assert answered.is_set()
    assert not thread.is_alive()
