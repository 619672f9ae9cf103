# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.errors import LoadRefusedError
from neuron.harnesses.estimating import Asked, Estimate
from neuron.harnesses.placing import place
from neuron.harnesses.shortages import check_cache, shortage
from neuron.room import Room


def room(index: int, free_mb: int, total_mb: int, uuid: str = "GPU") -> Room:
    device = Device(index=index, uuid=uuid, name="D", vram_total_mb=total_mb)
    return Room(device=device, total_mb=total_mb, free_mb=free_mb)


SMALL, BUSY = room(0, 10_000, 12_000), room(0, 1000, 24_000)
CPU = room(0, 1000, 4096, "cpu")
SPEC = ModelSpec(model_id="m")


def needs(fixed_mb: int) -> Estimate:
    """8 tokens are a MiB; one rank of several has its share of the weights, and 1000 MiB beside."""
    return Estimate(
        fixed_mb=fixed_mb,
        weights_mb=fixed_mb - 1000,
        kv_bytes_per_token=131072,
        is_exact=True,
        context=32768,
    )


def refusal(
    there: list[Room], fixed_mb: int, would_go: list[str] | None = None, **asked: Any
) -> LoadRefusedError:
    wanted = Asked(platform="cpu" if there == [CPU] else "cuda", **asked)
    placement = place(there[: wanted.ranks], needs(fixed_mb), wanted)
    weights_mb = (fixed_mb - 1000) * wanted.ranks
    return shortage(
        SPEC,
        placement,
        wanted,
        there,
        lambda n: needs(weights_mb // n + 1000),
        lambda n: 12 % n == 0,
        would_go or [],
    )


def test_a_refusal_has_the_arithmetic_in_words_and_in_facts() -> None:
    error = refusal([BUSY], 5000)
    assert error.facts["reason"] == (
        "it needs 5528 MiB of device 0, which has 1000 MiB free of 24000"
    )
    assert error.facts["needed_mb"] == 5528
    assert error.facts["devices"] == [
        {"index": 0, "needed_mb": 5528, "free_mb": 1000, "total_mb": 24_000}
    ]
    assert (error.facts["weights_mb"], error.facts["kv_cache_mb"]) == (4000, 528)
    assert error.facts["source"] == "estimated"
    assert error.status == 422


@pytest.mark.parametrize(
    ("there", "fixed_mb", "fields", "kind", "advice"),
    [
        ([BUSY], 5000, {"would_go": ["a", "b"]}, "insufficient_vram", "Unload a, b first"),
        ([BUSY], 5000, {}, "insufficient_vram", "Free memory on the device"),
        ([SMALL], 5000, {"kv_cache_mb": 6000}, "insufficient_vram", "Lower kv_cache_mb to 5000"),
        ([SMALL], 5000, {"max_model_len": 90_000}, "insufficient_vram", "max_model_len to 39808"),
        ([CPU], 5000, {}, "insufficient_vram", "raise cpu_budget_mb"),
        ([SMALL], 12_500, {}, "multi_host_unsupported", "GPUs of this machine together have 12000"),
        ([SMALL, SMALL], 12_500, {}, "insufficient_vram", "Set tensor_parallel to 2"),
        ([SMALL] * 3, 30_000, {}, "insufficient_vram", "Set tensor_parallel to 3"),
        ([SMALL] * 5, 48_000, {}, "tp_infeasible", "heads can be dealt to 1, 2, 3, 4 only"),
        ([SMALL, SMALL], 30_000, {}, "multi_host_unsupported", "together have 24000 MiB"),
        ([SMALL, SMALL], 11_700, {"ranks": 2}, "insufficient_vram", "a smaller quantization"),
        # Too much only since more was asked for than is needed.
        ([SMALL], 5000, {"kv_cache_mb": 9000}, "insufficient_vram", "Lower kv_cache_mb to 5000"),
    ],
)
def test_each_refusal_says_what_would_help(
    there: list[Room], fixed_mb: int, fields: dict[str, Any], kind: str, advice: str
) -> None:
    error = refusal(there, fixed_mb, **fields)
    assert advice in error.message
    assert error.facts["load_kind"] == kind


@pytest.mark.parametrize(
    ("asked", "reason", "suggestion"),
    [
        (
            {"max_model_len": 8192, "kv_cache_mb": 300},
            "its KV cache of 300 MiB holds 2176 tokens of one request; max_model_len is 8192",
            "Set max_model_len to 2176 or less, or kv_cache_mb to 1040 or more.",
        ),
        (
            {"kv_cache_mb": 10},
            "its KV cache of 10 MiB holds 0 tokens of one request",
            "Set kv_cache_mb to 528 or more.",
        ),
    ],
)
def test_a_context_that_the_cache_cannot_hold_is_told_with_the_longest_that_it_can(
    asked: dict[str, Any], reason: str, suggestion: str
) -> None:
    wanted = Asked(platform="cuda", **asked)
    with pytest.raises(LoadRefusedError) as caught:
        check_cache(SPEC, place([SMALL], needs(1000), wanted), wanted)
    facts = caught.value.facts
    assert (facts["load_kind"], facts["reason"]) == ("insufficient_vram", reason)
    assert facts["suggestion"] == suggestion


def test_a_cache_that_is_large_enough_is_no_fault() -> None:
    for max_model_len, kv_cache_mb in ((8192, None), (None, 300), (None, None)):
        wanted = Asked(platform="cuda", max_model_len=max_model_len, kv_cache_mb=kv_cache_mb)
        check_cache(SPEC, place([SMALL], needs(1000), wanted), wanted)
