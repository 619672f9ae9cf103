# SPDX-License-Identifier: GPL-3.0-or-later
"""What do several measurements of one thing say together? Pure."""

import statistics
from collections.abc import Sequence
from enum import StrEnum

import msgspec


class FailedError(Exception):
    """What was to be measured did not happen. The message says what happened instead."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one row, a figure per round.

    Attributes:
        ours: through our neuron, in seconds or per second.
        theirs: what it is compared with, in the same rounds; empty: it stands alone.
        missing: why there are no figures; None: there are.
    """

    ours: list[float] = []
    theirs: list[float] = []
    missing: str | None = None

    @property
    def our_median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.ours)

    @property
    def their_median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.theirs)

    @property
    def ratio(self) -> float:
        """Median of the rounds' own ratios: what slows the machine for a minute slows both sides of a round."""
        return statistics.median(
            our / their for our, their in zip(self.ours, self.theirs, strict=True)
        )


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How good a figure must be. `is_floor`: more is better."""

    must: float
    goal: float
    is_floor: bool = False

    def allows(self, found: float, bound: float) -> bool:
        """Whether the figure keeps the bound."""
        return found >= bound if self.is_floor else found <= bound


class Verdict(StrEnum):
    """What a figure is worth."""

    GOAL = "goal met"
    MUST = "must met"
    NOT_MET = "NOT MET"
    TOLD = "for information"
    NOT_RUN = "not run"


def judge(found: float, bounds: Bounds | None) -> Verdict:
    """Hold a figure against its bounds; None: it has none."""
    if bounds is None:
        return Verdict.TOLD
    if bounds.allows(found, bounds.goal):
        return Verdict.GOAL
    return Verdict.MUST if bounds.allows(found, bounds.must) else Verdict.NOT_MET


def spread(values: Sequence[float]) -> float:
    """How far apart they lie, over their median. 0: all are equal."""
    return (max(values) - min(values)) / statistics.median(values)
