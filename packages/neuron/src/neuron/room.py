# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of each device can still be given to an engine, and who holds the rest. Pure.

What an engine uses is in the driver's figures; what it was given and has not taken yet is not, and is counted here.
"""

from collections.abc import Collection, Iterable, Mapping

import msgspec

from cortex_core.discovery import Device
from cortex_core.node import DeviceHealth, ModelStatus
from neuron.discovery import CPU_UUID
from neuron.residents import Resident

# On its way up: its claim stands, whatever it has taken of it so far.
RISING = (ModelStatus.LOADING, ModelStatus.RECOVERING)


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """One device, as one who wants a part of it sees it.

    Attributes:
        total_mb: MiB that it has; 0: the driver does not tell.
        free_mb: MiB that nobody has or was promised; None: not known.
        is_lost: it is not there any more.
    """

    device: Device
    total_mb: int
    free_mb: int | None = None
    is_lost: bool = False


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A model that has a part of the devices.

    Attributes:
        held_mb: MiB that would be free without it, by device.
        is_busy: it works, or is on its way up.
        used_s: when it last did, monotonic seconds.
    """

    model_id: str
    held_mb: Mapping[int, int]
    is_busy: bool = False
    used_s: float = 0.0


def rooms(
    devices: Iterable[Device],
    healths: Iterable[DeviceHealth],
    residents: Collection[Resident],
    *,
    used_mb: Mapping[str, Mapping[int, int]],
    unsettled: Collection[str],
    lost: Collection[int],
    without: str | None = None,
) -> list[Room]:
    """What each device can still give.

    Args:
        devices: of the machine.
        healths: of the same devices, as last read.
        residents: the models, as they are now.
        used_mb: MiB of each device that each model's processes had then; a model without any: it is not told.
        unsettled: the models that were on their way up when the reading began: it may miss what they took since.
        lost: indices of devices that are not there any more.
        without: a model whose own claim does not count: room is sought for it.
    """
    by_index = {health.index: health for health in healths}
    others = [resident for resident in residents if resident.id != without]
    found = []
    for device in devices:
        claims = [(r, r.claims_mb[device.index]) for r in others if device.index in r.claims_mb]
        free_mb = by_index.get(device.index, DeviceHealth(index=device.index)).vram_free_mb
        if device.uuid == CPU_UUID or (free_mb is None and device.vram_total_mb):
            free_mb = device.vram_total_mb - sum(claim_mb for _, claim_mb in claims)
        elif free_mb is not None:
            free_mb -= sum(
                max(0, claim_mb - used_mb.get(resident.id, {}).get(device.index, 0))
                for resident, claim_mb in claims
                if resident.status in RISING or resident.id in unsettled
            )
        found.append(
            Room(
                device=device,
                total_mb=device.vram_total_mb,
                free_mb=None if free_mb is None else max(0, free_mb),
                is_lost=device.index in lost,
            )
        )
    return found


def held_mb(resident: Resident, used_mb: Mapping[int, int]) -> Mapping[int, int]:
    """MiB of each device that would be free without a model: what its processes have, else what it was given."""
    return used_mb or resident.claims_mb
