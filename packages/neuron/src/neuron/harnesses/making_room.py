# SPDX-License-Identifier: GPL-3.0-or-later
"""Who would have to go, so that an engine fits. Nobody is sent away here. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from cortex_core.control import ModelSpec
from neuron.harnesses.estimating import Asked, Estimate
from neuron.harnesses.placing import Placement, choose_rooms, place
from neuron.room import Holder, Room


class Weighed(NamedTuple):
    """Where an engine goes, and who would have to go for it; `would_go` is None where that would not help."""

    placement: Placement
    would_go: list[Holder] | None


def weigh(
    spec: ModelSpec,
    needs: Estimate,
    asked: Asked,
    there: Sequence[Room],
    holders: Sequence[Holder],
) -> Weighed:
    """Find the best place for an engine.

    1. Where it fits now.
    2. Where it would fit without idle models: those that were used least recently.
    3. Where it would fit without busy ones as well.
    4. Nowhere: told of the devices that have most room.

    Raises:
        LoadRefusedError: as choose_rooms.
    """
    now = place(choose_rooms(spec, there), needs, asked)
    if now.fits:
        return Weighed(now, [])
    idle = [holder for holder in holders if not holder.is_busy]
    by_index = {room.device.index: room for room in there}
    for going in (idle, list(holders)):
        found = []
        for chosen in _candidates(spec, [_without(room, going) for room in there]):
            if place(chosen, needs, asked).fits:
                then = place([by_index[room.device.index] for room in chosen], needs, asked)
                found.append(Weighed(then, who_would_go(then.missing_mb, going)))
        if found:
            return min(found, key=_loss)
    return Weighed(now, None)


def _candidates(spec: ModelSpec, emptied: Sequence[Room]) -> list[list[Room]]:
    """Each device for an engine of one rank that names none; else those with most room."""
    chosen = choose_rooms(spec, emptied)
    if len(chosen) > 1 or spec.devices is not None:
        return [chosen]
    return [[room] for room in emptied if not room.is_lost]


def _loss(weighed: Weighed) -> tuple[int, float]:
    """How much is lost by those who would go: first that busy ones do, then how lately they were used."""
    going = weighed.would_go or []
    return sum(each.is_busy for each in going), max((each.used_s for each in going), default=0.0)


def _without(room: Room, holders: Iterable[Holder]) -> Room:
    if room.free_mb is None:
        return room
    freed_mb = sum(holder.held_mb.get(room.device.index, 0) for holder in holders)
    free_mb = room.free_mb + freed_mb
    return msgspec.structs.replace(room, free_mb=min(free_mb, room.total_mb or free_mb))


def who_would_go(missing_mb: Mapping[int, int], holders: Iterable[Holder]) -> list[Holder]:
    """Those without whom nothing is missing, or as many as there are.

    Idle ones before busy ones, and of each those used least recently, until there is enough; then less those
    that turned out not to matter.
    """
    going: list[Holder] = []
    for holder in sorted(holders, key=lambda each: (each.is_busy, each.used_s, each.model_id)):
        if _is_enough(missing_mb, going):
            break
        if any(holder.held_mb.get(index) for index in missing_mb):
            going.append(holder)
    for holder in reversed(going.copy()):
        rest = [other for other in going if other is not holder]
        if _is_enough(missing_mb, rest):
            going = rest
    return going


def _is_enough(missing_mb: Mapping[int, int], going: Iterable[Holder]) -> bool:
    held = [holder.held_mb for holder in going]
    return all(
        sum(each.get(index, 0) for each in held) >= short_mb
        for index, short_mb in missing_mb.items()
    )
