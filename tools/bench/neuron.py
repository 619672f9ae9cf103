# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures the neuron against `vllm serve`, with the demo model, in one run: `python tools/bench/neuron.py --help`."""

import argparse
import asyncio
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

# Run as a script, this folder is searched first, and this file found where the daemon's package is meant.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import msgspec
import tree
from bench import machine, page, rows, table
from bench.figures import FailedError, Measured
from bench.parts import PARTS, Found, Options

from cortex_core.http import server

PAGE = tree.ROOT / "docs/benchmarks.md"
NAME = "neuron"


def main() -> None:
    """Measure, print, and write where asked to. Exit code 1: something could not be measured, or misses its must."""
    given = read_command_line(sys.argv[1:])
    if given.write and (given.only != list(PARTS) or given.streams != list(rows.STREAMS)):
        sys.exit("--write puts the whole table into the page: leave out --only and --streams")
    here = machine.look()
    for line in here.lines():
        print(line, file=sys.stderr)
    if here.is_busy:
        print(
            f"warning: this machine is busy (load average {here.load_average:.2f} on {here.cores} cores): "
            "the figures will say little. Better run it again when it is quiet.",
            file=sys.stderr,
        )
    with tempfile.TemporaryDirectory(prefix="cxb") as folder:
        options = Options(
            rounds=given.rounds, streams=given.streams, tokens=given.tokens,
            platform=here.platform, folder=Path(folder),
        )  # fmt: skip
        found: Found = {}
        try:
            server.run(lambda: measure(options, given.only, found))
        except (KeyboardInterrupt, asyncio.CancelledError):
            sys.exit("ended before it was through; nothing is left running")
    report(given, here, found)
    is_lacking = any(measured.missing and key != rows.WAKE for key, measured in found.items())
    if is_lacking or table.is_missed(rows.build_rows(given.streams), found):
        sys.exit(1)


def read_command_line(words: Sequence[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=_count, default=3, help="rounds of each figure (3)")
    parser.add_argument("--streams", type=_counts, default=list(rows.STREAMS),
                        help="streams at once, one after the other (1,8,64)")  # fmt: skip
    parser.add_argument("--tokens", type=_count, default=64, help="tokens of each stream (64)")
    parser.add_argument("--only", type=_parts, default=list(PARTS),
                        help=f"parts of it: {','.join(PARTS)}")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, with each round")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    return parser.parse_args(words)


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is not a number from 1 on")
    return int(word)


def _counts(words: str) -> list[int]:
    return [_count(word) for word in words.split(",")]


def _parts(words: str) -> list[str]:
    found = words.split(",")
    if unknown := [word for word in found if word not in PARTS]:
        raise argparse.ArgumentTypeError(
            f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}"
        )
    return found


async def measure(options: Options, parts: Sequence[str], found: Found) -> None:
    """Go through the parts, noting what each finds, or why it found nothing."""
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    for part in (name for name in PARTS if name in parts):
        try:
            found |= await PARTS[part](options)
        except* Exception as failed:  # noqa: BLE001 - what the others found took minutes
            found |= _note_failed(part, _innermost(failed), options)


def _note_failed(part: str, error: BaseException, options: Options) -> Found:
    print(f"{part} could not be measured:", file=sys.stderr)
    if isinstance(error, FailedError):
        print(error, file=sys.stderr)
    else:
        traceback.print_exception(error)
    missing = Measured(missing=(str(error) or repr(error)).partition("\n")[0])
    own = [row for row in rows.build_rows(options.streams) if row.part == part]
    return {row.key: missing for row in own}


def _innermost(error: BaseException) -> BaseException:
    return _innermost(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def report(given: argparse.Namespace, here: machine.Machine, found: Found) -> None:
    """Print the table, and write it into the page if that was asked for."""
    listed = rows.build_rows(given.streams)
    cells = table.build_cells(listed, found)
    if given.json:
        told = {"machine": here, "rounds": given.rounds, "tokens": given.tokens,
                "figures": table.write_values(listed, found)}  # fmt: skip
        print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    else:
        print(table.write_text(cells))
    if given.write:
        text = machine.write_section(given.rounds, here, table.write_markdown(cells))
        PAGE.write_text(page.replace_marked(PAGE.read_text(), NAME, text))


if __name__ == "__main__":
    main()
