# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models' files go from the disk, so that another's have room. Pure."""

import msgspec

from neuron.weights.refusals import WeightsError

MIB = 1024 * 1024
# Left free whatever comes: a machine whose disk is full to the last byte does worse things than to refuse a model.
RESERVE_BYTES = 512 * MIB


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One repository on disk.

    Attributes:
        key: what tells it from others.
        size_bytes: what would be free without it.
        last_used_s: Unix seconds.
        pinned: whether it stays: it is loaded, a default model, or being fetched.
    """

    key: str
    size_bytes: int
    last_used_s: float
    pinned: bool = False


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """What there is room for.

    Attributes:
        free_bytes: on the disk, not yet promised to other downloads.
        budget_bytes: that all models' files together may take; None: there is no budget, and nothing is evicted.
        promised_bytes: still to come of other downloads.
    """

    free_bytes: int
    budget_bytes: int | None = None
    promised_bytes: int = 0


def plan_room(needed_bytes: int, held: list[Held], disk: Disk) -> list[str]:
    """The keys to evict before `needed_bytes` more are fetched: the least used first, and no more than it takes.

    1. What is lacking is what the budget or the disk lacks, whichever is more.
    2. Nothing lacks: nothing goes.
    3. Without a budget nothing goes either; else what is not pinned, from the least used on.

    Raises:
        WeightsError: `insufficient_disk`, with the arithmetic: all of that would not do.
    """
    used = sum(repo.size_bytes for repo in held) + disk.promised_bytes
    over_disk = needed_bytes + RESERVE_BYTES - disk.free_bytes
    over_budget = 0 if disk.budget_bytes is None else used + needed_bytes - disk.budget_bytes
    lacking = max(over_disk, over_budget)
    evicted: list[str] = []
    loose = sorted((repo for repo in held if not repo.pinned), key=lambda repo: repo.last_used_s)
    for repo in loose if disk.budget_bytes is not None else []:
        if lacking <= 0:
            break
        evicted.append(repo.key)
        lacking -= repo.size_bytes
    if lacking > 0:
        raise _no_room(needed_bytes, used, held, disk, over_budget >= over_disk)
    return evicted


def _no_room(
    needed_bytes: int, used: int, held: list[Held], disk: Disk, by_budget: bool
) -> WeightsError:
    needed = f"{_mb(needed_bytes)} MiB are to be fetched"
    pinned = _mb(sum(repo.size_bytes for repo in held if repo.pinned))
    if by_budget and disk.budget_bytes is not None:
        return WeightsError(
            "insufficient_disk",
            f"{needed}, {_mb(used)} of {_mb(disk.budget_bytes)} MiB of the disk budget are used, and {pinned} MiB "
            "of that are pinned by models that are loaded, default or being fetched",
            "Raise `disk_budget_mb` in [harness.vllm], or unload a model.",
        )
    return WeightsError(
        "insufficient_disk",
        f"{needed}, the disk has {_mb(disk.free_bytes)} MiB free, and {_mb(RESERVE_BYTES)} MiB of it are left free",
        "Make room on the disk: POST /weights/remove removes a model's files.",
    )


def _mb(size_bytes: int) -> int:
    return -(-size_bytes // MIB)
