# SPDX-License-Identifier: GPL-3.0-or-later
"""How many ranks does an engine get whose spec does not say? Pure."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cortex_core.control import ModelSpec
from neuron.discovery import is_mig
from neuron.harnesses.placing import is_cpu
from neuron.room import Room

# Devices of one kind differ by less, by what firmware keeps for itself.
ALIKE_RATIO = 0.02


class Ranks(NamedTuple):
    """How many ranks, and the devices that they are chosen from."""

    ranks: int
    rooms: Sequence[Room]


def choose_ranks(
    spec: ModelSpec,
    there: Sequence[Room],
    least_mb: Callable[[int], int],
    can_deal: Callable[[int], bool],
) -> Ranks:
    """Find the fewest ranks that a model needs.

    1. As the spec says; else as many as it names devices. On the CPU one.
    2. One, where one device could hold it if that were empty, or the driver does not tell.
    3. The fewest that devices of one kind could hold, and its heads can be dealt to; of the larger ones, where there
       are several kinds.
    4. One: it is refused, with the reason.

    Args:
        spec: what is asked for.
        there: all devices of the machine.
        least_mb: MiB that each of so many ranks needs at least.
        can_deal: whether the heads can be dealt to so many.
    """
    if spec.tensor_parallel is not None or is_cpu(there):  # 1
        return Ranks(spec.tensor_parallel or 1, there)
    if spec.devices is not None:
        return Ranks(max(1, len(spec.devices)), there)
    usable = [room for room in there if not room.is_lost]
    one_mb = least_mb(1)
    if any(not room.total_mb or one_mb <= room.total_mb for room in usable):  # 2
        return Ranks(1, there)
    fitting = [  # 3
        Ranks(ranks, alike)
        for alike in _kinds(room for room in usable if not is_mig(room.device))
        for ranks in range(2, len(alike) + 1)
        if can_deal(ranks) and least_mb(ranks) <= _smallest_mb(alike)
    ]
    return min(fitting, key=_cost, default=Ranks(1, there))  # 4


def _cost(found: Ranks) -> tuple[int, int]:
    return found.ranks, -_smallest_mb(found.rooms)


def _smallest_mb(rooms: Sequence[Room]) -> int:
    return min(room.total_mb for room in rooms)


def _kinds(rooms: Iterable[Room]) -> list[list[Room]]:
    """The devices, those that are alike together."""
    kinds: list[list[Room]] = []
    for room in rooms:
        same = next((kind for kind in kinds if _alike(kind[0], room)), None)
        if same is None:
            kinds.append([room])
        else:
            same.append(room)
    return kinds


def _alike(a: Room, b: Room) -> bool:
    same = (a.device.name, a.device.compute_capability) == (
        b.device.name,
        b.device.compute_capability,
    )
    return same and abs(a.total_mb - b.total_mb) <= ALIKE_RATIO * max(a.total_mb, b.total_mb)
