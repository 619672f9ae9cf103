# SPDX-License-Identifier: GPL-3.0-or-later
"""How long does a model that came up stay, while others want its room? Pure."""

from cortex_gateway.config import EvictionSettings
from cortex_gateway.view import FleetView, Move, Place

# So many times as long as its moves take: then at most every third second of a device goes on moves.
WORTH = 2.0
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
