# SPDX-License-Identifier: GPL-3.0-or-later
"""What a routing policy is given, and what it answers.

To add one: a module here with one function that fulfils `Policy`, one line in `POLICIES`. Pure.
"""

from collections.abc import Callable, Sequence

import msgspec


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is ready on a node.

    Attributes:
        node: its name.
        model_id: the id that it is resident under there.
        busy: requests that it has, running and waiting: the neuron's last count, and what we sent and saw end since.
        max_running: requests that its engine runs at once; None: not known, or no limit.
        max_waiting: requests that may wait beyond those; None: likewise.
        last_turn: number of the last request that was sent there, counted over the fleet; 0: none yet.
    """

    node: str
    model_id: str
    busy: int = 0
    max_running: int | None = None
    max_waiting: int | None = None
    last_turn: int = 0

    @property
    def is_full(self) -> bool:
        """Whether one more request would surely be refused."""
        if self.max_running is None or self.max_waiting is None:
            return False
        return self.busy >= self.max_running + self.max_waiting


# Picks one of several replicas, of which there is at least one. Asked often, so it neither logs nor counts.
Policy = Callable[[Sequence[Replica]], Replica]
