# SPDX-License-Identifier: GPL-3.0-or-later
"""Which figures has the neuron's benchmark, and how good must each be? Pure."""

from collections.abc import Iterable

from bench.figures import Bounds
from bench.table import Row

STREAMS = (1, 8, 64)
PARTS = ("streams", "load", "death", "start", "wake")

LOAD = "load"
LOAD_WITHOUT_SPARE = "load_without_spare"
FIRST_ERROR = "death_first_error"
SERVING_AGAIN = "death_serving_again"
START = "start"
WAKE = "wake"


def pace_key(streams: int) -> str:
    """Of the row with the tokens per second."""
    return f"tokens_per_s_{streams}"


def ttft_key(streams: int) -> str:
    """Of the row with the time to the first token."""
    return f"ttft_{streams}"


def build_rows(streams: Iterable[int] = STREAMS) -> list[Row]:
    """All rows, in the order of the table."""
    rows = []
    for count in streams:
        at_once = f"{count} stream{'s' if count > 1 else ''}"
        rows += [_pace(count, at_once), _ttft(count, at_once)]
    return [*rows, *_LOADS, *_DEATHS, _START, _WAKE]


def _pace(count: int, at_once: str) -> Row:
    return Row(
        key=pace_key(count), part="streams", label=f"tokens/s, {at_once}", unit="tokens/s",
        bounds=Bounds(must=0.95, goal=1.0, is_floor=True),
    )  # fmt: skip


def _ttft(count: int, at_once: str) -> Row:
    return Row(
        key=ttft_key(count), part="streams", label=f"TTFT p50, {at_once}", unit="ms",
        bounds=Bounds(must=1.1, goal=1.0),
    )  # fmt: skip


_LOADS = (
    Row(
        key=LOAD, part="load", label="load, request to first token, against `vllm serve` start",
        unit="s", bounds=Bounds(must=1 / 4, goal=1 / 8),
    ),
    Row(
        key=LOAD_WITHOUT_SPARE, part="load", label="the same without a warm spare", unit="s",
    ),
)  # fmt: skip
_DEATHS = (
    Row(
        key=FIRST_ERROR, part="death", label="kill -9 of EngineCore: error in a running stream",
        unit="s", is_ratio=False, bounds=Bounds(must=1.0, goal=0.2),
    ),
    Row(
        key=SERVING_AGAIN, part="death", label="kill -9 of EngineCore: serving again",
        unit="s", is_ratio=False, bounds=Bounds(must=10.0, goal=4.0),
    ),
)  # fmt: skip
_START = Row(
    key=START, part="start", label="daemon start to /health",
    unit="s", is_ratio=False, bounds=Bounds(must=1.0, goal=0.5),
)  # fmt: skip
_WAKE = Row(
    key=WAKE, part="wake", label="wake to first token, against load from page cache",
    unit="s", bounds=Bounds(must=1 / 5, goal=1 / 15),
)  # fmt: skip
