# SPDX-License-Identifier: GPL-3.0-or-later
"""Which replica has the least to do for its size? Pure."""

from collections.abc import Sequence

from cortex_gateway.routing.policy import Replica


def least_busy(replicas: Sequence[Replica]) -> Replica:
    """The one with the smallest share of its running places taken, then by name.

    Where one of them does not tell its size, plain counts are compared.
    """
    sized = all(replica.max_running for replica in replicas)

    def load(replica: Replica) -> tuple[float, str]:
        return replica.busy / ((sized and replica.max_running) or 1), replica.node

    return min(replicas, key=load)
