# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the neuron's benchmark: what each starts, does to it, and times.

To add one: a function in PARTS, and its rows in `rows`.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import msgspec
from bench import rows
from bench.client import open_connection
from bench.contestants import CHAT, chat, first_token_s, load, move, open_neuron, open_vllm
from bench.figures import FailedError, Measured
from bench.processes import find_engine_core, until_quiet
from bench.servers import Server
from bench.streams import Pace, measure_streams

# A daemon's start is short, and so differs more from one to the next.
STARTS = 5
# A round of streams takes seconds, and differs from the next by a third.
STREAM_ROUNDS = 5
HEALTH_EVERY_S = 0.002
# More than can be said before the engine is killed.
LONG_ANSWER = 3000
PIECES_BEFORE_DEATH = 20
TOLD_WITHIN_S = 60.0

Found = dict[str, Measured]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured, and where.

    Attributes:
        rounds: of each figure.
        streams: at once; two rows for each.
        tokens: that each stream has.
        platform: `cpu` or `cuda`.
        folder: for all that is written meanwhile; a short path, since sockets are made in it.
    """

    rounds: int
    streams: list[int]
    tokens: int
    platform: str
    folder: Path


async def _measure_streams(options: Options) -> Found:
    """Both servers are up, one at a time is asked, in turns; who begins changes with the round."""
    paces: dict[tuple[str, int], list[Pace]] = {}
    async with open_neuron(options.folder) as ours, _open_vllm(options) as theirs:
        servers = {"neuron": ours, "vllm serve": theirs}
        await _warm_up(options, ours, theirs)
        rounds = options.rounds * STREAM_ROUNDS
        for number in range(rounds):
            turns = list(servers.items())[:: -1 if number % 2 else 1]
            for streams in options.streams:
                for name, server in turns:
                    _tell(f"{streams} streams, round {number + 1} of {rounds}, {name}")
                    pace = await _measure_pace(options, server, streams)
                    paces.setdefault((name, streams), []).append(pace)
    return _read_paces(options, paces)


async def _warm_up(options: Options, ours: Server, theirs: Server) -> None:
    _tell("streams: both servers are coming up")
    await ours.until_well("GET", "/health")
    await load(ours)
    for server in (ours, theirs):
        await first_token_s(server)
        for streams in options.streams:
            await _measure_pace(options, server, streams, each=1)
    await until_quiet(ours.pid)
    await until_quiet(theirs.pid)


async def _measure_pace(options: Options, server: Server, streams: int, each: int = 0) -> Pace:
    ask = partial(chat, options.tokens)
    return await measure_streams(server.port, CHAT, ask, streams, options.tokens, each)


def _read_paces(options: Options, paces: dict[tuple[str, int], list[Pace]]) -> Found:
    found: Found = {}
    for streams in options.streams:
        ours, theirs = paces["neuron", streams], paces["vllm serve", streams]
        found[rows.pace_key(streams)] = Measured(
            ours=[pace.tokens_per_s for pace in ours], theirs=[pace.tokens_per_s for pace in theirs]
        )
        found[rows.ttft_key(streams)] = Measured(
            ours=[pace.ttft_s for pace in ours], theirs=[pace.ttft_s for pace in theirs]
        )
    return found


async def _measure_loads(options: Options) -> Found:
    """A first round, which is not counted, has all files read."""
    ours: list[float] = []
    without_spare: list[float] = []
    theirs: list[float] = []
    async with (
        open_neuron(options.folder) as neuron,
        open_neuron(options.folder, spare=False) as spareless,
    ):
        for server in (neuron, spareless):
            await server.until_well("GET", "/health")
        for number in range(options.rounds + 1):
            _tell(f"loads, round {number} of {options.rounds}")
            theirs.append(await _time_cold_start(options))
            ours.append(await _time_load(neuron))
            without_spare.append(await _time_load(spareless))
    return {
        rows.LOAD: Measured(ours=ours[1:], theirs=theirs[1:]),
        rows.LOAD_WITHOUT_SPARE: Measured(ours=without_spare[1:], theirs=theirs[1:]),
    }


async def _time_cold_start(options: Options) -> float:
    """From the start of `vllm serve` to its first token."""
    began_s = time.perf_counter()
    async with _open_vllm(options) as server:
        return await first_token_s(server) - began_s


async def _time_load(server: Server) -> float:
    """From the request to load to the first token, on a daemon at rest. The model is gone again afterwards."""
    await until_quiet(server.pid)
    began_s = time.perf_counter()
    await load(server)
    took_s = await first_token_s(server) - began_s
    await move(server, "unload")
    return took_s


async def _measure_deaths(options: Options) -> Found:
    first_error: list[float] = []
    serving_again: list[float] = []
    async with open_neuron(options.folder) as server:
        await server.until_well("GET", "/health")
        await until_quiet(server.pid)
        await load(server)
        for number in range(options.rounds):
            _tell(f"kill -9 of EngineCore, round {number + 1} of {options.rounds}")
            await until_quiet(server.pid)
            error_s, serving_s = await _time_death(server)
            first_error.append(error_s)
            serving_again.append(serving_s)
    return {
        rows.FIRST_ERROR: Measured(ours=first_error),
        rows.SERVING_AGAIN: Measured(ours=serving_again),
    }


async def _time_death(server: Server) -> tuple[float, float]:
    """Seconds until a running stream has its error, and until a new request is answered."""
    async with open_connection(server.port) as connection, asyncio.TaskGroup() as tasks:
        stream = tasks.create_task(connection.collect("POST", CHAT, chat(LONG_ANSWER)))
        await connection.until_heard(PIECES_BEFORE_DEATH)
        engine_core = find_engine_core(server.pid)
        killed_s = time.perf_counter()
        os.kill(engine_core, signal.SIGKILL)
        again = await server.until_well("POST", CHAT, chat(1, stream=False))
        async with asyncio.timeout(TOLD_WITHIN_S):
            broken = (await stream).read()
    if broken.error_s is None:
        raise FailedError(
            f"the stream of a killed engine ended without an error: {broken.body[-500:]!r}"
        )
    return broken.error_s - killed_s, again.end_s - killed_s


async def _measure_starts(options: Options) -> Found:
    took = []
    for _ in range(max(STARTS, options.rounds)):
        began_s = time.perf_counter()
        async with open_neuron(options.folder) as server:
            answer = await server.until_well("GET", "/health", every_s=HEALTH_EVERY_S)
        took.append(answer.end_s - began_s)
    return {rows.START: Measured(ours=took)}


async def _measure_wakes(options: Options) -> Found:
    if options.platform != "cuda":
        return {rows.WAKE: Measured(missing="there is no GPU here, and a CPU cannot sleep")}
    woken, loaded = [], []
    async with open_neuron(options.folder) as server:
        await server.until_well("GET", "/health")
        for number in range(options.rounds + 1):
            _tell(f"wakes, round {number} of {options.rounds}")
            loaded.append(await _time_load(server))
            await load(server)
            await first_token_s(server)
            await move(server, "sleep")
            woken.append(await _time_wake(server))
            await move(server, "unload")
    return {rows.WAKE: Measured(ours=woken[1:], theirs=loaded[1:])}


async def _time_wake(server: Server) -> float:
    await until_quiet(server.pid)
    began_s = time.perf_counter()
    await move(server, "wake")
    return await first_token_s(server) - began_s


def _open_vllm(options: Options) -> AbstractAsyncContextManager[Server]:
    return open_vllm(options.folder, options.platform)


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


PARTS: dict[str, Callable[[Options], Awaitable[Found]]] = {
    "streams": _measure_streams,
    "load": _measure_loads,
    "death": _measure_deaths,
    "start": _measure_starts,
    "wake": _measure_wakes,
}
