# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose turn is it? Pure."""

from collections.abc import Sequence

from cortex_gateway.routing.policy import Replica


def round_robin(replicas: Sequence[Replica]) -> Replica:
    """The one whose last request is the longest ago, then by name.

    That is a ring without a position to keep, so a replica that comes or goes does not disturb the others' turns.
    """
    return min(replicas, key=lambda replica: (replica.last_turn, replica.node))
