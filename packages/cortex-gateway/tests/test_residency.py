# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a model that came up stays, where `min_residency_s` is 30."""

import pytest

from cortex_gateway.config import EvictionSettings
from cortex_gateway.residency import stays_s
from cortex_gateway.view import FleetView, Move


@pytest.mark.parametrize(
    ("how", "took_s", "expected"),
    [
        ("sleep", {}, 30.0),
        # never woken, whatever else is known
        ("sleep", {"load": 3.0, "sleep": 1.0}, 30.0),
        ("sleep", {"load": 60.0, "sleep": 5.0, "wake": 2.0}, 14.0),
        ("sleep", {"wake": 2.0}, 4.0),
        ("sleep", {"sleep": 1.0, "wake": 0.0}, 2.0),
        # what comes back slowly stays no longer than it was told
        ("sleep", {"sleep": 6.0, "wake": 9.5}, 30.0),
        ("unload", {"load": 60.0, "unload": 1.0}, 30.0),
        ("unload", {"load": 3.0, "unload": 0.5}, 7.0),
        # a sleeper that is unloaded is not woken again
        ("unload", {"sleep": 1.0, "wake": 2.0}, 30.0),
    ],
)
def test_it_stays_for_twice_what_going_and_coming_back_take_there(
    how: Move, took_s: dict[Move, float], expected: float
) -> None:
    view = FleetView(nodes=(), took_s={("a", "m"): took_s, ("b", "m"): {"sleep": 9.0, "wake": 9.0}})
    assert stays_s(view, ("a", "m"), how, EvictionSettings()) == expected


def test_no_residency_is_none() -> None:
    view = FleetView(nodes=(), took_s={("a", "m"): {"sleep": 1.0, "wake": 2.0}})
    rules = EvictionSettings(min_residency_s=0)
    assert stays_s(view, ("a", "m"), "sleep", rules) == 0.0
    assert stays_s(view, ("a", "other"), "sleep", rules) == 0.0
