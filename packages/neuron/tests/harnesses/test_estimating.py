# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import msgspec
import pytest

from cortex_core.control import ModelSpec
from neuron.harnesses.estimating import (
    AUTO,
    Asked,
    Cache,
    Estimate,
    choose_cache,
    estimate,
    fitting_tokens,
    least_cache_mb,
    read_asked,
    wanted_cache_mb,
)
from neuron.harnesses.figures import CacheKind, Figures

GIB = 1024 * 1024 * 1024
# Llama 3.1 8B: 128 KiB of cache per token.
LLAMA = Figures(
    tensor_bytes={"BF16": 16 * GIB},
    architecture="LlamaForCausalLM",
    dtype="bfloat16",
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    hidden_size=4096,
    vocab_size=128256,
    context=131072,
    cache=CacheKind.FULL,
)
GPU = Asked(platform="cuda", block_tokens=16)
CPU = Asked(platform="cpu", block_tokens=128, dtype="bfloat16")
# 1 MiB of cache for 8 tokens.
NEEDS = Estimate(fixed_mb=1000, kv_bytes_per_token=131072, is_exact=True, context=32768)


def test_a_spec_is_read_with_the_operators_settings() -> None:
    spec = ModelSpec(
        model_id="m",
        tensor_parallel=2,
        dtype="auto",
        engine_args={"kv_cache_dtype": "fp8", "max_num_seqs": 8, "block_size": 32},
    )
    assert read_asked(spec, platform="cuda", kv_cache_mb=512, longest=4096) == Asked(
        platform="cuda",
        ranks=2,
        longest=4096,
        kv_cache_mb=512,
        cache_dtype="fp8",
        block_tokens=32,
        batch_sequences=8,
    )
    adapted = ModelSpec(model_id="m", lora={str(n): "org/adapter" for n in range(9)})
    for rank, room in [(0, 16), (8, 8), (12, 16)]:
        asked = read_asked(adapted, platform="cuda", kv_cache_mb=None, longest=None, lora_rank=rank)
        assert (asked.lora_places, asked.lora_rank) == (8, room)
    asked = read_asked(adapted, platform="cpu", kv_cache_mb=None, longest=None)
    assert (asked.lora_places, asked.lora_rank) == (10, 16)
    own = ModelSpec(model_id="m", kv_cache_mb=64, max_model_len=128)
    asked = read_asked(own, platform="cpu", kv_cache_mb=512, longest=4096)
    assert (asked.kv_cache_mb, asked.max_model_len, asked.dtype) == (64, 128, "bfloat16")
    assert asked.block_tokens == 128


@pytest.mark.parametrize(
    ("figures", "asked", "weights_mb", "kv_bytes"),
    [
        ({}, {}, 17204, 131072),
        ({}, {"ranks": 2}, 8602, 65536),
        ({}, {"ranks": 16}, 1076, 16384),
        ({}, {"cache_dtype": "fp8_e5m2"}, 17204, 65536),
        ({}, {"dtype": "float32"}, 34407, 262144),
        ({"tensor_bytes": {"F32": 32 * GIB}, "dtype": "float32"}, {}, 17204, 131072),
        ({"tensor_bytes": {"I32": 4 * GIB, "F16": GIB}}, {}, 5376, 131072),
        ({"tensor_bytes": {"?": 2 * GIB}, "dtype": "float32"}, {}, 1076, 131072),
        ({"cache": CacheKind.LATENT, "kv_heads": 1, "head_dim": 576}, {"ranks": 8}, 2151, 36864),
        ({"cache": CacheKind.NONE}, {}, 17204, None),
        ({"cache": CacheKind.MIXED, "layers": 0}, {}, 17204, None),
    ],
)
def test_weights_and_cache_are_counted_as_they_will_lie_in_memory(
    figures: dict[str, Any], asked: dict[str, Any], weights_mb: int, kv_bytes: int | None
) -> None:
    needs = estimate(
        msgspec.structs.replace(LLAMA, **figures), msgspec.structs.replace(GPU, **asked)
    )
    assert (needs.weights_mb, needs.kv_bytes_per_token) == (weights_mb, kv_bytes)


def test_a_gpu_needs_more_than_weights_and_the_cpu_s_budget_counts_only_these() -> None:
    # The process 1536, workspace 8192 * 4096 * 20 B and 256 * 128256 * 4 B.
    assert estimate(LLAMA, GPU).fixed_mb == 17204 + 1536 + 766
    assert estimate(LLAMA, CPU).fixed_mb == 17204
    assert estimate(LLAMA, GPU).is_exact
    assert not estimate(msgspec.structs.replace(LLAMA, cache=CacheKind.MIXED), GPU).is_exact
    assert not estimate(LLAMA, msgspec.structs.replace(GPU, cache_dtype="new")).is_exact


@pytest.mark.parametrize(
    ("needs", "asked", "least_mb", "wanted_mb"),
    [
        # Enough for 131072 tokens and a block; least 4096 tokens and one.
        ({}, {}, 514, 16400),
        # At least one request of full length.
        ({"context": 262144}, {}, 514, 32770),
        # 16 requests of full length.
        ({"context": 2048}, {}, 258, 4112),
        ({}, {"longest": 2048}, 258, 4112),
        ({}, {"max_model_len": 8192}, 1026, 16400),
        ({}, {"kv_cache_mb": 300}, 300, 300),
        ({"is_exact": False}, {}, 512, 16400),
        ({"kv_bytes_per_token": None}, {}, 512, 4096),
        ({"context": None}, {}, 512, 4096),
        ({"kv_bytes_per_token": None, "has_cache": False}, {}, 64, 64),
        ({}, {"platform": "cpu", "block_tokens": 128}, 528, 256),
        ({}, {"platform": "cpu", "block_tokens": 128, "max_model_len": 8192}, 1040, 1040),
        ({}, {"platform": "cpu", "block_tokens": 128, "max_model_len": 128}, 32, 256),
    ],
)
def test_the_cache_that_is_wanted_and_the_least(
    needs: dict[str, Any], asked: dict[str, Any], least_mb: int, wanted_mb: int
) -> None:
    wanted = msgspec.structs.replace(NEEDS, **needs), msgspec.structs.replace(GPU, **asked)
    assert (least_cache_mb(*wanted), wanted_cache_mb(*wanted)) == (least_mb, wanted_mb)


@pytest.mark.parametrize(
    ("needs", "asked", "room_mb", "cache"),
    [
        ({}, {}, None, Cache(kv_cache_mb=16400)),
        ({}, {}, 90_000, Cache(kv_cache_mb=16400)),
        # 2000 MiB are 16000 tokens, of which 125 blocks, less one, are to be had.
        ({}, {}, 2000, Cache(kv_cache_mb=2000, max_model_len=15872)),
        ({}, {}, 10, Cache(kv_cache_mb=514, max_model_len=3968)),
        ({}, {"kv_cache_mb": 300}, 10, Cache(kv_cache_mb=300, max_model_len=2176)),
        ({}, {"longest": 2048}, None, Cache(kv_cache_mb=4112, max_model_len=2048)),
        ({}, {"longest": 99_999}, None, Cache(kv_cache_mb=16400)),
        ({}, {"max_model_len": 8192}, None, Cache(kv_cache_mb=16400, max_model_len=8192)),
        ({}, {"max_model_len": 8192}, 1100, Cache(kv_cache_mb=1100, max_model_len=8192)),
        ({}, {"max_model_len": 8192}, 900, Cache(kv_cache_mb=1026, max_model_len=8192)),
        (
            {},
            {"max_model_len": 8192, "kv_cache_mb": 300},
            None,
            Cache(kv_cache_mb=300, fits_tokens=2176),
        ),
        ({}, {"kv_cache_mb": 10}, None, Cache(kv_cache_mb=10, fits_tokens=0)),
        ({"is_exact": False}, {}, None, Cache(kv_cache_mb=16400, max_model_len=AUTO)),
        ({"is_exact": False}, {"longest": 64}, None, Cache(kv_cache_mb=144, max_model_len=64)),
        (
            {"is_exact": False},
            {"max_model_len": 8192, "kv_cache_mb": 300},
            None,
            Cache(kv_cache_mb=300, max_model_len=8192),
        ),
        ({"kv_bytes_per_token": None, "has_cache": False}, {}, None, Cache(kv_cache_mb=64)),
    ],
)
def test_the_cache_and_the_context_are_chosen_for_the_room(
    needs: dict[str, Any], asked: dict[str, Any], room_mb: int | None, cache: Cache
) -> None:
    wanted = msgspec.structs.replace(NEEDS, **needs), msgspec.structs.replace(GPU, **asked)
    assert choose_cache(*wanted, room_mb) == cache


def test_what_fits_is_whole_blocks_less_the_one_that_the_engine_keeps() -> None:
    assert fitting_tokens(16, 131072, GPU) == 0
    assert fitting_tokens(32, 131072, GPU) == 128
    assert fitting_tokens(64, 131072, msgspec.structs.replace(GPU, block_tokens=256)) == 256


def test_room_for_adapters_counts_by_places_and_rank() -> None:
    model = msgspec.structs.replace(LLAMA, expert_width=14336)
    plain_mb = estimate(model, GPU).fixed_mb
    # Of one adapter of rank 16: 32 layers of attention (4096+4096 and 4096+1024, twice each) and of three matrices of
    # 4096 by 14336, and both ends, of 2 bytes.
    sides = 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)) + 2 * (4096 + 128256)
    adapter_mb = sides * 16 * 2 / (1024 * 1024)
    for places in (1, 8):
        asked = msgspec.structs.replace(GPU, lora_places=places, lora_rank=16)
        more_mb = estimate(model, asked).fixed_mb - plain_mb
        assert 0 <= more_mb - places * adapter_mb < 1
        assert estimate(model, asked).weights_mb == estimate(model, GPU).weights_mb
