# SPDX-License-Identifier: GPL-3.0-or-later
"""What to tell of a placement that does not fit: the arithmetic, and what would help. Pure."""

from collections.abc import Callable, Sequence

import msgspec

from cortex_core.control import ModelSpec
from cortex_core.errors import LoadRefusedError
from neuron.discovery import is_mig
from neuron.harnesses.estimating import Asked, Estimate, fitting_tokens, least_cache_mb
from neuron.harnesses.placing import Placement, Share, is_cpu, refused
from neuron.room import Room

# What a rank needs with another number of ranks, and whether the model can have so many.
EstimateFor = Callable[[int], Estimate]
CanDeal = Callable[[int], bool]


def check_cache(spec: ModelSpec, placement: Placement, asked: Asked) -> None:
    """Refuse a context of which not one request fits the cache; the engine would find out after reading all weights.

    Raises:
        LoadRefusedError: `insufficient_vram`, with the longest context that fits.
    """
    cache, per_token = placement.cache, placement.needs.kv_bytes_per_token
    if cache.fits_tokens is None:
        return
    needed_mb = _least_mb(placement.needs, asked)
    wanted = f"; max_model_len is {asked.max_model_len}" if asked.max_model_len else ""
    lower = f"Set max_model_len to {cache.fits_tokens} or less, or" if cache.fits_tokens else "Set"
    raise refused(
        spec,
        "insufficient_vram",
        f"its KV cache of {cache.kv_cache_mb} MiB holds {cache.fits_tokens} tokens of one request{wanted}",
        f"{lower} kv_cache_mb to {needed_mb} or more.",
        needed_mb=needed_mb,
        kv_cache_mb=cache.kv_cache_mb,
        kv_bytes_per_token=per_token,
        fits_tokens=cache.fits_tokens,
    )


def shortage(
    spec: ModelSpec,
    placement: Placement,
    asked: Asked,
    there: Sequence[Room],
    estimate_for: EstimateFor,
    can_deal: CanDeal,
    would_go: Sequence[str] = (),
) -> LoadRefusedError:
    """The refusal of a placement that does not fit.

    Args:
        spec: what is refused.
        placement: where it would have gone.
        asked: what it asked for.
        there: all devices of the machine.
        estimate_for: what it would need with other ranks.
        can_deal: whether its heads can be dealt to so many.
        would_go: models without which it would fit.
    """
    kind, advice = "insufficient_vram", _advice(placement, asked, would_go)
    if any(share.is_too_large for share in placement.shares) and not is_cpu(there):
        kind, advice = _elsewhere(placement, asked, there, estimate_for, can_deal)
    return refused(
        spec,
        kind,
        "; ".join(_arithmetic(share) for share in placement.shares if share.short_mb),
        advice,
        needed_mb=sum(share.needed_mb for share in placement.shares),
        weights_mb=placement.needs.weights_mb,
        kv_cache_mb=placement.cache.kv_cache_mb,
        source=placement.needs.source,
        devices=[_facts(share) for share in placement.shares],
    )


def _arithmetic(share: Share) -> str:
    return (
        f"it needs {share.needed_mb} MiB of device {share.index}, "
        f"which has {share.free_mb} MiB free of {share.total_mb}"
    )


def _facts(share: Share) -> dict[str, int | None]:
    return {name: getattr(share, name) for name in Share.__struct_fields__}


def _advice(placement: Placement, asked: Asked, would_go: Sequence[str]) -> str:
    """1. Somebody can go. 2. A smaller cache, or a shorter context, would do. 3. Nothing of this model's."""
    if would_go:
        return f"Unload {', '.join(would_go)} first, or choose another device."
    needs = placement.needs
    left_mb = max(0, (placement.room_mb or 0) - needs.fixed_mb)
    if asked.kv_cache_mb is not None and left_mb >= _least_mb(needs, asked):
        return f"Lower kv_cache_mb to {left_mb} or less."
    per_token = needs.kv_bytes_per_token if needs.is_exact else None
    fits = fitting_tokens(left_mb, per_token, asked) if per_token else 0
    if asked.max_model_len is not None and fits:
        return f"Lower max_model_len to {fits} or less."
    if asked.platform == "cpu":
        return "Unload another model, or raise cpu_budget_mb in [harness.vllm]."
    return "Free memory on the device, or choose a smaller quantization."


def _least_mb(needs: Estimate, asked: Asked) -> int:
    return least_cache_mb(needs, msgspec.structs.replace(asked, kv_cache_mb=None))


def _elsewhere(
    placement: Placement,
    asked: Asked,
    there: Sequence[Room],
    estimate_for: EstimateFor,
    can_deal: CanDeal,
) -> tuple[str, str]:
    """Kind and advice for what its devices could not hold if they were empty.

    1. With a smaller cache they could. 2. More devices could: unasked only those of one kind are taken. 3. They could, but
    for its heads. 4. All devices together cannot.
    """
    totals = sorted(
        (room.total_mb for room in there if not room.is_lost and not is_mig(room.device)),
        reverse=True,
    )
    modest = msgspec.structs.replace(asked, kv_cache_mb=None, max_model_len=None)
    if _rank_mb(placement.needs, modest) <= min(share.total_mb for share in placement.shares):
        return "insufficient_vram", _advice(placement, asked, ())
    enough = [
        ranks
        for ranks in range(asked.ranks + 1, len(totals) + 1)
        if _rank_mb(estimate_for(ranks), modest) <= totals[ranks - 1]
    ]
    if dealt := [ranks for ranks in enough if can_deal(ranks)]:
        return "insufficient_vram", f"Set tensor_parallel to {dealt[0]}."
    if enough:
        works = ", ".join(str(ranks) for ranks in range(1, len(totals) + 1) if can_deal(ranks))
        return (
            "tp_infeasible",
            f"{enough[0]} devices could hold it, and its attention heads can be dealt to {works} only. "
            "Choose a smaller quantization.",
        )
    if _rank_mb(estimate_for(1), modest) > sum(totals):
        return (
            "multi_host_unsupported",
            f"All GPUs of this machine together have {sum(totals)} MiB, and one model on several machines is not "
            "supported. Choose a smaller quantization.",
        )
    return "insufficient_vram", "Choose a smaller quantization."


def _rank_mb(needs: Estimate, asked: Asked) -> int:
    return needs.fixed_mb + least_cache_mb(needs, asked)
