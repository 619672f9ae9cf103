# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast does a server stream to so many clients at once?"""

import asyncio
import statistics
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from bench.client import Collected, Connection, open_connection
from bench.figures import FailedError

ROUND_S = 300.0
# Requests per round at least, so that a median means something.
REQUESTS = 16
REQUESTS_EACH = 2
Body = Mapping[str, Any]
Ask = Callable[[int], Body]


class Pace(NamedTuple):
    """What one round of streams came to."""

    tokens_per_s: float
    ttft_s: float


async def measure_streams(
    port: int, path: str, ask: Ask, streams: int, tokens: int, each: int = 0
) -> Pace:
    """One round: so many clients at once, of which each asks for one stream after the other.

    Args:
        port: of the server.
        path: of the route.
        ask: the body of a request, given its number.
        streams: clients at once.
        tokens: that each stream must have.
        each: streams per client; 0: as many as a median needs.

    Raises:
        FailedError: a stream did not end well.
    """
    each = each or max(REQUESTS_EACH, REQUESTS // streams)
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_connection(port)) for _ in range(streams)]
        bodies = [[ask(client * each + turn) for turn in range(each)] for client in range(streams)]
        collected = await _collect(opened, path, bodies)
    began_s = min(one.asked_s for one in collected)
    answers = [one.read() for one in collected]
    ttft_s = [
        answer.check_spoken(tokens) - one.asked_s
        for one, answer in zip(collected, answers, strict=True)
    ]
    took_s = max(answer.end_s for answer in answers) - began_s
    return Pace(tokens * len(answers) / took_s, statistics.median(ttft_s))


async def _collect(
    opened: list[Connection], path: str, bodies: list[list[Body]]
) -> list[Collected]:
    try:
        async with asyncio.timeout(ROUND_S):
            turns = (
                _take_turns(connection, path, own)
                for connection, own in zip(opened, bodies, strict=True)
            )
            return [one for turn in await asyncio.gather(*turns) for one in turn]
    except TimeoutError:
        raise FailedError(f"the streams did not end within {ROUND_S:.0f} s") from None


async def _take_turns(connection: Connection, path: str, bodies: list[Body]) -> list[Collected]:
    return [await connection.collect("POST", path, body) for body in bodies]
