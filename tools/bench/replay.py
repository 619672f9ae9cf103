# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulates what the residency ladder saves an agent whose models share a device: `python tools/bench/replay.py --help`.

A simulation: real daemons, and echo engines that take as long as real engines were measured to take.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

# Run as a script, this folder is searched first, and files found where packages are meant.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import msgspec
import tree
from bench import machine, page, table
from bench.client import HOST, ask_well
from bench.figures import Bounds, FailedError, Measured
from bench.processes import until_quiet
from bench.servers import Server, open_server, program
from bench.table import Row
from bench.trace import MODELS, SCALE, Call, Costs, count_switches, make_trace

PAGE = tree.ROOT / "docs/benchmarks.md"
NAME = "replay"
# A device of 4096 MiB, which echo engines only pretend to use; one model fits at a time.
DEVICE_MB, MODEL_MB = 4096, 3000
TOKEN_S = 0.02
TRIALS = 5
CHAT = "/v1/chat/completions"
ROWS = [
    Row(
        key="stall", part=NAME, label="total stall, with the ladder, against kill and reload",
        unit="s", bounds=Bounds(must=1 / 3, goal=1 / 5),
    ),
    Row(key="longest", part=NAME, label="longest stall of one request", unit="s"),
]  # fmt: skip


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one replay.

    Attributes:
        stalls_s: seconds of the trace that each request waited for its first token.
        decisions: how many of them were served at once, and for how many something was loaded or woken.
    """

    stalls_s: list[float]
    decisions: dict[str, int]


def write_id(costs: Costs, own: Costs, *, can_sleep: bool) -> str:
    """An echo model that takes as long as these, in our time; `own` is what an echo engine takes of that anyhow."""
    delays = {
        name: max(0.0, getattr(costs, name) / SCALE - getattr(own, name))
        for name in ("load_s", "wake_s", "sleep_s")
    }
    asked = "&".join(f"{name}={delay_s:.3f}" for name, delay_s in delays.items())
    return f"echo/{costs.name}?{asked}&token_s={TOKEN_S}&can_sleep={str(can_sleep).lower()}"


def write_models(own: Costs, *, can_sleep: bool) -> str:
    """The catalogue: models under the names that the agent has for them."""
    ids = {each.name: write_id(each, own, can_sleep=can_sleep) for each in MODELS}
    entries = "".join(
        f'[[models]]\nid = "{model_id}"\nharness = "echo"\nvram_mb = {MODEL_MB}\n'
        for model_id in ids.values()
    )
    return f"{entries}[aliases]\n" + "".join(f'{n} = "{i}"\n' for n, i in ids.items())


def write_gateway(port: int, neuron: int, residency_s: float) -> str:
    """The defaults in our time, but for the residency where that was asked for."""
    return (
        f'[gateway]\nlisten = "{HOST}:{port}"\nmetrics_listen = "{HOST}:0"\n'
        f"[loading]\nload_wait_s = {600 / SCALE}\n"
        f"[eviction]\nmin_residency_s = {residency_s / SCALE}\nmax_wait_s = {300 / SCALE}\n"
        f"[poll]\ninterval_s = {5 / SCALE}\n"
        f'[[neurons]]\nname = "a"\nendpoint = "http://{HOST}:{neuron}"\n'
    )


@asynccontextmanager
async def open_neuron(folder: Path) -> AsyncIterator[Server]:
    """A neuron with one device for echo engines."""

    def command(port: int) -> list[str]:
        config = folder / "neuron.toml"
        config.write_text(
            f'listen = "{HOST}"\nport = {port}\ndrain_s = 1\n'
            '[[harnesses]]\nname = "vllm"\n[[harnesses]]\nname = "echo"\n'
            f'[harness.vllm]\nwarm_spare = false\nplatform = "cpu"\ncpu_budget_mb = {DEVICE_MB}\n'
        )
        return [program("neuron"), "serve", "--config", str(config)]

    async with open_server(command, {"STATE_DIRECTORY": str(folder / "state")}, folder) as server:
        await server.until_well("GET", "/health")
        yield server


@asynccontextmanager
async def open_gateway(
    folder: Path, neuron: Server, models: str, residency_s: float
) -> AsyncIterator[Server]:
    """A gateway before it, which has seen it."""
    (folder / "models.toml").write_text(models)

    def command(port: int) -> list[str]:
        (folder / "cortex.toml").write_text(write_gateway(port, neuron.port, residency_s))
        return [program("cortex"), "serve", "--config", str(folder / "cortex.toml")]

    async with open_server(command, {}, folder) as server:
        await server.until_well("GET", f"/v1/models/{MODELS[0].name}")
        yield server


async def measure_own(folder: Path) -> Costs:
    """Seconds that moving an echo engine takes, whatever it was asked to take: in our time these are no engine's."""
    model = {"model_id": "echo/nothing"}
    took_s: dict[str, list[float]] = {"load": [], "sleep": [], "wake": [], "unload": []}
    async with open_neuron(folder) as neuron:
        await until_quiet(neuron.pid)
        for _ in range(TRIALS):
            for move, taken_s in took_s.items():
                body = {**model, "harness": "echo"} if move == "load" else model
                began_s = time.perf_counter()
                await ask_well(neuron.port, "POST", f"/models/{move}", body)
                taken_s.append(time.perf_counter() - began_s)
    load_s, sleep_s, wake_s, _ = (statistics.median(each) for each in took_s.values())
    return Costs(name="nothing", load_s=load_s, sleep_s=sleep_s, wake_s=wake_s)


async def replay(
    trace: list[Call], folder: Path, own: Costs, *, can_sleep: bool, residency_s: float
) -> Replayed:
    """The whole trace, on daemons of its own.

    Raises:
        FailedError: an answer was not what it should be.
    """
    models = write_models(own, can_sleep=can_sleep)
    async with (
        open_neuron(folder) as neuron,
        open_gateway(folder, neuron, models, residency_s) as gateway,
    ):
        return await _replay(trace, gateway)


async def _replay(trace: list[Call], gateway: Server) -> Replayed:
    stalls_s, decisions = [], Counter[str]()
    for call in trace:
        await asyncio.sleep(call.gap_s / SCALE)
        tokens = max(1, round(call.answer_s / SCALE / TOKEN_S))
        body = {
            "model": call.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": "word " * tokens}],
            "max_tokens": tokens,
        }
        asked_s = time.perf_counter()
        answer = await ask_well(gateway.port, "POST", CHAT, body)
        stalls_s.append((answer.check_spoken(tokens) - asked_s) * SCALE)
        decisions[_decision(answer.head)] += 1
    return Replayed(stalls_s=stalls_s, decisions=dict(decisions))


def _decision(head: bytes) -> str:
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"x-cortex-decision":
            return value.strip().decode()
    raise FailedError("the gateway does not say what it decided")


async def measure(rounds: int, residency_s: float) -> tuple[dict[str, Measured], list[str]]:
    """The trace in both ways, at once, since they do little but wait; and what became of the last round's requests."""
    found = {row.key: Measured(ours=[], theirs=[]) for row in ROWS}
    told: list[str] = []
    for _ in range(rounds):
        ladder, reload = await _replay_both(residency_s)
        for key, total in (("stall", sum), ("longest", max)):
            found[key].ours.append(total(ladder.stalls_s))
            found[key].theirs.append(total(reload.stalls_s))
        told = [_tell("with the ladder", ladder), _tell("kill and reload", reload)]
    return found, told


async def _replay_both(residency_s: float) -> tuple[Replayed, Replayed]:
    trace = make_trace()
    with tempfile.TemporaryDirectory(prefix="cxb") as folder:
        trial, *folders = (Path(tempfile.mkdtemp(dir=folder)) for _ in range(3))
        own = await measure_own(trial)
        async with asyncio.TaskGroup() as both:
            ladder, reload = (
                both.create_task(
                    replay(trace, own_folder, own, can_sleep=can_sleep, residency_s=residency_s)
                )
                for own_folder, can_sleep in zip(folders, (True, False), strict=True)
            )
    return ladder.result(), reload.result()


def _tell(how: str, replayed: Replayed) -> str:
    told = ", ".join(f"{name} {count}" for name, count in sorted(replayed.decisions.items()))
    return f"{how}: {told}"


def main() -> None:
    """Replay, print, and write where asked to. Exit code 1: the bound is not kept, or it could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="rounds, of two minutes each (1)")
    parser.add_argument("--residency", type=float, default=30.0, metavar="SECONDS",
                        help="min_residency_s of the gateway, of the trace's time (30, as it is by default)")  # fmt: skip
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    given = parser.parse_args()
    trace = make_trace()
    print(
        f"A simulation: {len(trace)} requests, {count_switches(trace)} changes of the model; "
        f"a second of the clock is {SCALE:g} s of the trace.",
        flush=True,
    )
    try:
        found, told = asyncio.run(measure(given.rounds, given.residency))
    except* FailedError as failed:
        sys.exit(str(failed.exceptions[0]))
    cells = table.build_cells(ROWS, found)
    print("\n".join([table.write_text(cells), *told]))
    if given.write:
        written = "\n".join([table.write_markdown(cells), "", *(f"- {line}" for line in told)])
        text = machine.write_section(given.rounds, machine.look(), written)
        PAGE.write_text(page.replace_marked(PAGE.read_text(), NAME, text))
    if table.is_missed(ROWS, found):
        sys.exit(1)


if __name__ == "__main__":
    main()
