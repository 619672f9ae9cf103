# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures what a decision of the gateway costs its processor: `python tools/bench/decisions.py --help`."""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Run as a script, this folder is searched first, and files found where packages are meant.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tree
from bench import machine, page, table
from bench.figures import Bounds, FailedError, Measured
from bench.scenes import Scene, build_scenes
from bench.table import Row

PAGE = tree.ROOT / "docs/benchmarks.md"
NAME = "decisions"
# Nodes and models. The bounds hold for the first.
SIZES = ((16, 100), (1000, 1000))
READY = Bounds(must=20e-6, goal=10e-6)
PLACING = Bounds(must=1e-3, goal=0.5e-3)
# It grows with what the client sends.
UNBOUND = "serve_read"
# What they are held against: so many lookups in a plain dict.
LOOKUPS = 1000
# Of one figure in one round; seconds of processor time that each takes, at least.
TRIALS, TRIAL_S = 5, 0.004


def build_rows(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Row]:
    """All rows, in the order of the table."""
    return [_row(scene, size) for size in sizes for scene in build_scenes(*SIZES[0])]


def _row(scene: Scene, size: tuple[int, int]) -> Row:
    bounds = READY if scene.decision == "Serve" else PLACING
    is_bound = size == SIZES[0] and scene.key != UNBOUND
    return Row(
        key=_key(scene, size),
        part=NAME,
        label=f"{size[0]} nodes, {size[1]} models; {scene.label}",
        unit="µs",
        is_ratio=False,
        bounds=bounds if is_bound else None,
    )


def _key(scene: Scene, size: tuple[int, int]) -> str:
    return f"{scene.key}_{size[0]}_{size[1]}"


def measure(rounds: int) -> dict[str, Measured]:
    """Each decision beside the lookups, in the same rounds.

    Raises:
        FailedError: something else was decided than should be.
    """
    scenes = {_key(scene, size): scene for size in SIZES for scene in build_scenes(*size)}
    for scene in scenes.values():  # what is worked out but once for what a poll found
        _check(scene)
    ours: dict[str, list[float]] = {key: [] for key in scenes}
    theirs: dict[str, list[float]] = {key: [] for key in scenes}
    gc.collect()
    gc.freeze()  # the fleets are ours, and no daemon's
    for _ in range(rounds):
        for key, scene in scenes.items():
            ours[key].append(_cost_s(scene.decide))
            theirs[key].append(_cost_s(look_up))
    return {key: Measured(ours=ours[key], theirs=theirs[key]) for key in scenes}


def _check(scene: Scene) -> None:
    found = type(scene.decide()).__name__
    if found != scene.decision:
        raise FailedError(f"{scene.label}: it is {found}, and should be {scene.decision}")


def _cost_s(work: Callable[[], object]) -> float:
    """Processor time of one call, the least of several trials: what others do to the machine counts for little."""
    return min(_try(work) for _ in range(TRIALS))


def _try(work: Callable[[], object]) -> float:
    calls, spent_s = 0, 0.0
    while spent_s < TRIAL_S:
        count = max(1, calls)
        began_s = time.process_time()
        for _ in range(count):
            work()
        spent_s += time.process_time() - began_s
        calls += count
    return spent_s / calls


_TABLE = {f"org/model-{n}": n for n in range(LOOKUPS)}


def look_up() -> int:
    """The fixed unit of work."""
    total = 0
    for name in _TABLE:
        total += _TABLE[name]
    return total


def main() -> None:
    """Measure, print, and write where asked to. Exit code 1: a bound is not kept, or it could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each figure (9)")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    given = parser.parse_args()
    rows = build_rows()
    try:
        found = measure(given.rounds)
    except FailedError as failed:
        sys.exit(str(failed))
    cells = table.build_cells(rows, found)
    print(table.write_text(cells))
    print(f"against: {LOOKUPS} lookups in a dict, in the same rounds")
    if given.write:
        text = machine.write_section(given.rounds, machine.look(), table.write_markdown(cells))
        PAGE.write_text(page.replace_marked(PAGE.read_text(), NAME, text))
    if table.is_missed(rows, found):
        sys.exit(1)


if __name__ == "__main__":
    main()
