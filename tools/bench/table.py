# SPDX-License-Identifier: GPL-3.0-or-later
"""How is what was measured printed, on a terminal and in a document? Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from bench.figures import Bounds, Measured, Verdict, judge, spread

HEADS = ("figure", "ours", "against", "ratio", "spread", "must", "goal", "result")
_NUMERIC = range(1, len(HEADS) - 1)
Unit = Literal["tokens/s", "µs", "ms", "s"]
_SCALE = {"tokens/s": 1.0, "µs": 1e6, "ms": 1000.0, "s": 1.0}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a benchmark.

    Attributes:
        key: its name for machines.
        part: of the benchmark, which measures it.
        label: its name for people.
        unit: that it is shown in.
        is_ratio: what is judged is the ratio to what it is compared with, and not the figure.
        bounds: None: it is shown for information.
    """

    key: str
    part: str
    label: str
    unit: Unit
    is_ratio: bool = True
    bounds: Bounds | None = None


def verdict(row: Row, measured: Measured) -> Verdict:
    """What the figure is worth."""
    if measured.missing is not None:
        return Verdict.NOT_RUN
    return judge(measured.ratio if row.is_ratio else measured.our_median, row.bounds)


def is_missed(rows: Iterable[Row], found: Mapping[str, Measured]) -> bool:
    """Whether a bound that must be kept is not."""
    return any(verdict(row, found[row.key]) == Verdict.NOT_MET for row in rows if row.key in found)


def build_cells(rows: Iterable[Row], found: Mapping[str, Measured]) -> list[list[str]]:
    """The table as text, a list per row that was measured or could not be."""
    return [_cells(row, found[row.key]) for row in rows if row.key in found]


def write_text(cells: Sequence[Sequence[str]]) -> str:
    """For a terminal."""
    lines = [HEADS, *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in _NUMERIC else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write_markdown(cells: Sequence[Sequence[str]]) -> str:
    """For a document."""
    rule = ["---:" if column in _NUMERIC else "---" for column in range(len(HEADS))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (HEADS, rule, *cells))


def write_values(rows: Iterable[Row], found: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """For machines: each row with all its rounds, in seconds or per second."""
    return [_values(row, found[row.key]) for row in rows if row.key in found]


def _values(row: Row, measured: Measured) -> dict[str, Any]:
    return {
        "key": row.key,
        "label": row.label,
        "ours": measured.ours,
        "against": measured.theirs,
        "ratio": measured.ratio if measured.theirs else None,
        "must": row.bounds.must if row.bounds else None,
        "goal": row.bounds.goal if row.bounds else None,
        "result": verdict(row, measured),
        "missing": measured.missing,
    }


def _cells(row: Row, measured: Measured) -> list[str]:
    result = verdict(row, measured)
    must, goal = _bounds(row)
    if measured.missing is not None:
        return [row.label, "", "", "", "", must, goal, f"{result}: {measured.missing}"]
    theirs = _amount(measured.their_median, row.unit) if measured.theirs else ""
    ratio = f"{measured.ratio:.2f}x" if measured.theirs else ""
    ours = _amount(measured.our_median, row.unit)
    return [row.label, ours, theirs, ratio, f"{spread(measured.ours):.0%}", must, goal, result]


def _bounds(row: Row) -> tuple[str, str]:
    if row.bounds is None:
        return "", ""
    sign = ">=" if row.bounds.is_floor else "<="
    must, goal = (
        _share(bound) if row.is_ratio else _amount(bound, row.unit)
        for bound in (row.bounds.must, row.bounds.goal)
    )
    return f"{sign} {must}", f"{sign} {goal}"


def _share(ratio: float) -> str:
    """A quarter reads better as 1/4."""
    parts = round(1 / ratio)
    return f"1/{parts}" if parts > 1 and parts * ratio == 1 else f"{ratio:g}x"


def _amount(value: float, unit: Unit) -> str:
    scaled = value * _SCALE[unit]
    return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"
