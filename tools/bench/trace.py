# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent's work with three models that share a device, made up: what it asks for, when, and what moving them costs."""

import itertools
import random

import msgspec

# Seconds of the trace per second of the clock.
SCALE = 15.0
SEED = 7
# Times that the agent goes on to another model.
TURNS = 34


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that moving a model takes on a real device."""

    name: str
    load_s: float
    wake_s: float
    sleep_s: float


# As vLLM's project measured them on an A100: from a cold start to serving, and from sleep of level 1. How long falling asleep
# takes is known of a model of 39 GiB, and taken for all of them.
FALLS_ASLEEP_S = 5.7
PLANNER = Costs(
    name="planner", load_s=47.4, wake_s=2.87, sleep_s=FALLS_ASLEEP_S
)  # 30B, of which 3B work
CODER = Costs(name="coder", load_s=58.1, wake_s=0.82, sleep_s=FALLS_ASLEEP_S)  # 4B
TITLER = Costs(name="titler", load_s=37.6, wake_s=0.26, sleep_s=FALLS_ASLEEP_S)  # 0.6B
MODELS = (PLANNER, CODER, TITLER)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request of the agent.

    Attributes:
        gap_s: between the end of the answer before and this, while tools run.
        answer_s: how long the answer is, from its first token on.
    """

    model: str
    gap_s: float
    answer_s: float


def make_trace(seed: int = SEED, turns: int = TURNS) -> list[Call]:
    """Plans, edits and titles in turns: what an agent asks for is one model for a while, and then another."""
    chance = random.Random(seed)  # noqa: S311 - nobody guards a secret with it
    names = [PLANNER.name, CODER.name]
    calls: list[Call] = []
    for turn in range(turns):
        name = TITLER.name if turn % 6 == 5 else names[turn % 2]
        count = {"planner": chance.randint(1, 3), "coder": chance.randint(2, 6), "titler": 1}[name]
        calls += [
            Call(model=name, gap_s=chance.uniform(0.5, 4), answer_s=chance.uniform(2, 8))
            for _ in range(count)
        ]
    return calls


def count_switches(trace: list[Call]) -> int:
    """How often the agent asks for another model than before."""
    return sum(1 for before, after in itertools.pairwise(trace) if before.model != after.model)
