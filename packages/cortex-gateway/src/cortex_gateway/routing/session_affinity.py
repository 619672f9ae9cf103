# SPDX-License-Identifier: GPL-3.0-or-later
"""Which replica has read this conversation before? Pure."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b

from cortex_gateway.routing.least_busy import least_busy
from cortex_gateway.routing.policy import Policy, Replica

# So many requests more than the least busy one, and twice as many, are more than a cached prompt is worth.
SLACK = 16
SLACK_FACTOR = 2

_MASK = (1 << 64) - 1


def session_affinity(session: Callable[[], int]) -> Policy:
    """A policy for one request. `session` gives the number of its conversation; it is asked where there is a choice.

    1. The replica whose node weighs most for the conversation, so that its prompt is in that engine's cache. When a node
       leaves, its conversations alone move; when it is back, they come back.
    2. The least busy one, where that replica is saturated: it runs as many as it can, or far more than the least busy.

    A replica that has no place left at all is not among those that are given, and its conversations have their next
    choice, which is the same one each time.
    """

    def choose(replicas: Sequence[Replica]) -> Replica:
        if len(replicas) == 1:
            return replicas[0]
        number = session()
        own = max(replicas, key=lambda replica: weigh(number, replica.node))
        least = least_busy(replicas)
        return least if _is_saturated(own, least) else own

    return choose


def weigh(session: int, node: str) -> int:
    """What a node weighs for a conversation, as good as random: rendezvous hashing. 64 bits, the same in every process."""
    mixed = (session ^ _number(node)) * 0x9E3779B97F4A7C15 & _MASK
    mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & _MASK
    return mixed ^ mixed >> 32


@lru_cache(maxsize=4096)
def _number(node: str) -> int:
    return int.from_bytes(blake2b(node.encode(), digest_size=8).digest())


def _is_saturated(own: Replica, least: Replica) -> bool:
    if own.max_running is not None and own.busy >= own.max_running:
        return True
    return own.busy > least.busy + SLACK and own.busy > least.busy * SLACK_FACTOR
