# SPDX-License-Identifier: GPL-3.0-or-later
"""Which devices an engine gets, and how much of each it claims; and why not, where it cannot have it. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.errors import LoadRefusedError
from neuron.discovery import CPU_UUID, is_mig
from neuron.harnesses.estimating import (
    CUDA_CONTEXT_MB,
    RESERVE_MB,
    Asked,
    Cache,
    Estimate,
    choose_cache,
)
from neuron.harnesses.figures import CacheKind, Figures
from neuron.room import Room

HIGHEST_SHARE = 0.97


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """One device's part of an engine. `free_mb` as in Room."""

    index: int
    needed_mb: int
    free_mb: int | None
    total_mb: int

    @property
    def short_mb(self) -> int:
        """MiB that are missing; 0: it fits, as far as is known."""
        return 0 if self.free_mb is None else max(0, self.needed_mb - self.free_mb)

    @property
    def is_too_large(self) -> bool:
        """Whether it would not fit if the device were empty."""
        return 0 < self.total_mb < self.needed_mb


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine goes, whether it fits there or not.

    Attributes:
        devices: in the order of the ranks.
        shares: what it takes of each.
        cache: the KV cache of each rank.
        needs: of each rank.
        room_mb: MiB that each rank could have at most; None: not known.
        ranks: of tensor parallelism.
    """

    devices: list[Device]
    shares: list[Share]
    cache: Cache
    needs: Estimate
    room_mb: int | None = None
    ranks: int = 1

    @property
    def fits(self) -> bool:
        """Whether every device has room now."""
        return not self.missing_mb

    @property
    def missing_mb(self) -> dict[int, int]:
        """MiB that are missing, by device."""
        return {share.index: share.short_mb for share in self.shares if share.short_mb}

    @property
    def claims_mb(self) -> dict[int, int]:
        """MiB that it takes of each device."""
        return {share.index: share.needed_mb for share in self.shares}


def check_ranks(spec: ModelSpec, figures: Figures) -> None:
    """Refuse a number of ranks that the model's attention heads cannot be dealt to.

    Raises:
        LoadRefusedError: `tp_infeasible`, with the numbers that work.
    """
    ranks = spec.tensor_parallel or 1
    if not deals(ranks, figures):
        works = [str(n) for n in range(1, figures.heads + 1) if deals(n, figures)]
        raise refused(
            spec,
            "tp_infeasible",
            f"tensor_parallel is {ranks}, and its {figures.heads} attention heads "
            f"({figures.kv_heads} of keys and values) cannot be dealt to as many ranks evenly",
            f"What can be is tensor_parallel {', '.join(works)}.",
        )


def deals(ranks: int, figures: Figures) -> bool:
    """Whether its heads can be dealt to so many ranks evenly; where they are not known, yes."""
    kv_heads = figures.kv_heads
    if not figures.heads or figures.heads % ranks:
        return not figures.heads
    if figures.cache is not CacheKind.FULL or not kv_heads:
        return True
    return kv_heads % ranks == 0 or ranks % kv_heads == 0


def choose_rooms(spec: ModelSpec, there: Sequence[Room]) -> list[Room]:
    """The devices that the spec names, else those with the most free memory; the lower number where that is equal.

    On the CPU all ranks share the one device. A GPU that is lost is never chosen, and an engine of several ranks
    gets no MIG instance, since CUDA lets a process have only one.

    Raises:
        LoadRefusedError: `tp_infeasible`: there are too few. `invalid_spec`: one that it names is not there.
            `insufficient_vram`: one that it names is lost, or all are.
    """
    ranks = spec.tensor_parallel or 1
    if is_cpu(there):
        _ = [_find(spec, wanted, there) for wanted in spec.devices or []]
        return list(there)
    if spec.devices is not None:
        chosen = [_find(spec, wanted, there) for wanted in spec.devices]
    else:
        usable = [room for room in there if not room.is_lost]
        if ranks > 1:
            usable = [room for room in usable if not is_mig(room.device)]
        if not usable:
            reason = "no GPU of this machine can be reached any more"
            raise refused(
                spec, "insufficient_vram", reason, "Reset the GPUs, or restart the machine."
            )
        by_room = sorted(usable, key=lambda room: (-(room.free_mb or 0), room.device.index))
        chosen = sorted(by_room[:ranks], key=lambda room: room.device.index)
    if len(chosen) != ranks:
        raise refused(
            spec,
            "tp_infeasible",
            f"tensor_parallel is {ranks}, and it would have {len(chosen)} device(s) of {len(there)}",
            f"Set tensor_parallel to {len(chosen)}.",
        )
    if ranks > 1 and any(is_mig(room.device) for room in chosen):
        raise refused(
            spec,
            "tp_infeasible",
            "an engine of several ranks cannot run on MIG instances",
            "Name whole GPUs, or set tensor_parallel to 1.",
        )
    return chosen


def is_cpu(there: Sequence[Room]) -> bool:
    """Whether the device is the CPU."""
    return [room.device.uuid for room in there] == [CPU_UUID]


def _find(spec: ModelSpec, wanted: int | str, there: Sequence[Room]) -> Room:
    for room in there:
        device = room.device
        if wanted in (device.index, str(device.index), device.uuid):
            if room.is_lost:
                reason = (
                    f"device {device.index} ({device.uuid}) is lost: the driver cannot reach it"
                )
                raise refused(spec, "insufficient_vram", reason, "Choose another, or reset it.")
            return room
    known = ", ".join(f"{room.device.index} ({room.device.uuid})" for room in there)
    raise refused(spec, "invalid_spec", f"there is no device {wanted}", f"There are: {known}.")


def place(chosen: Sequence[Room], needs: Estimate, asked: Asked) -> Placement:
    """What an engine takes of the devices chosen for it, with the cache that there is room for."""
    each = asked.ranks if is_cpu(chosen) else 1
    reserve_mb = 0 if is_cpu(chosen) else RESERVE_MB
    free = [room.free_mb for room in chosen if room.free_mb is not None]
    room_mb = min(free) // each if free else None
    left_mb = None if room_mb is None else room_mb - needs.fixed_mb - reserve_mb
    cache = choose_cache(needs, asked, left_mb)
    return Placement(
        devices=[room.device for room in chosen],
        shares=[
            Share(
                index=room.device.index,
                needed_mb=(needs.fixed_mb + cache.kv_cache_mb) * each,
                free_mb=room.free_mb,
                total_mb=room.total_mb,
            )
            for room in chosen
        ],
        cache=cache,
        needs=needs,
        room_mb=room_mb,
        ranks=asked.ranks,
    )


def memory_share(placement: Placement) -> float | None:
    """What vLLM is to find free of its smallest device before it starts; None: the driver does not tell its size.

    The claim over the total, less what the process itself has taken by then.
    """
    total_mb = min(share.total_mb for share in placement.shares)
    if not total_mb:
        return None
    claim_mb = max(share.needed_mb for share in placement.shares) - CUDA_CONTEXT_MB
    return round(min(HIGHEST_SHARE, max(0.0, claim_mb / total_mb)), 4)


def refused(
    spec: ModelSpec, kind: str, reason: str, suggestion: str, **facts: Any
) -> LoadRefusedError:
    """A refusal of a spec."""
    return LoadRefusedError(
        model=spec.model_id, load_kind=kind, reason=reason, suggestion=suggestion, **facts
    )
