# SPDX-License-Identifier: GPL-3.0-or-later
"""How long does a model that came up stay, and how long may its work take, while others want its room? Pure."""

from cortex_gateway.config import EvictionSettings
from cortex_gateway.view import FleetView, Move, Place

# So many times as long as its moves take: then at most every third second of a device goes on moves.
WORTH = 2.0
# Who waits for room is served before others get their turns, and takes it from who is young or works, after this part of its
# wait.
URGENT_RATIO = 0.5
# How a model that went comes back.
_BACK: dict[Move, Move] = {"sleep": "wake", "unload": "load"}


def stays_s(view: FleetView, place: Place, how: Move, rules: EvictionSettings) -> float:
    """Seconds that a model which came up is not displaced, in `how` it would be.

    `min_residency_s`, or less where sending it away and bringing it back take little there, as last measured. What was
    never brought back that way is taken to be costly.
    """
    node, model_id = place
    back_s = view.takes_s(node, _BACK[how], model_id)
    if back_s is None:
        return rules.min_residency_s
    away_s = view.takes_s(node, how, model_id) or 0.0
    return min(rules.min_residency_s, WORTH * (away_s + back_s))


def is_urgent(waited_s: float, rules: EvictionSettings) -> bool:
    """Whether who has waited for room so long may take it from any that nothing pins, before its wait is over."""
    return rules.max_wait_s * URGENT_RATIO <= waited_s < rules.max_wait_s


def drains_s(view: FleetView, model: str, rules: EvictionSettings, now_s: float) -> float:
    """Seconds that the work of those who make room for a model has to end.

    `drain_s`, so that nobody is kept out of a model for longer by work that goes on and on; but all that is left of its wait
    where that is urgent.
    """
    queued = view.queued.get(model)
    waited_s = now_s - queued.since_s if queued else 0.0
    left_s = rules.max_wait_s - waited_s if is_urgent(waited_s, rules) else 0.0
    return max(rules.drain_s, left_s)
