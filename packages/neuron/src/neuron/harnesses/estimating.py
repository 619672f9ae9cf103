# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory an engine will need, per rank, and how large its KV cache shall be. Pure.

A rank is one of the `tensor_parallel` parts of an engine; on GPUs each has a device of its own.
"""

import math
from typing import Any, Literal

import msgspec

from cortex_core.control import ModelSpec
from neuron.harnesses.figures import FLOAT_BYTES, UNTOLD, CacheKind, Figures
from neuron.host.engines.vllm_options import lora_places, lora_room

MIB = 1024 * 1024

# What weights take beyond their files: padding, and what quantized ones are unpacked into.
WEIGHTS_FACTOR = 1.05
# Of a CUDA process beside what it computes with: its context, libraries, captured graphs, buffers between ranks.
CUDA_PROCESS_MB = 1536
# Of that, what is taken before vLLM looks at how much is free.
CUDA_CONTEXT_MB = 512
# Workspace: bytes for each token of a batch and unit of width, and for each sequence and word of the vocabulary.
BYTES_PER_ACTIVATION = 20
BYTES_PER_LOGIT = 4
BATCH_TOKENS = 8192
BATCH_SEQUENCES = 256
# Left alone on a GPU where the size of the cache is ours to choose: a desktop, fragments, a driver's whims.
RESERVE_MB = 512

# The cache that is wanted where nobody says: this many requests of full length, but no more than so many tokens,
# but one request of full length in any case. Least: a model that cannot hold this many tokens is of no use.
WANTED_REQUESTS = 16
WANTED_TOKENS = 128 * 1024
LEAST_TOKENS = 4096
# On the CPU the engine touches all of it when it comes up, so it is small unless asked for.
CPU_CACHE_MB = 256
# Where the files do not tell what a token takes.
UNTOLD_CACHE_MB = 4096
UNTOLD_LEAST_MB = 512
NO_CACHE_MB = 64

# Of adapters whose files are not here.
USUAL_LORA_RANK = 16

# Tokens of a cache's block. On CUDA it depends on the kind of attention, and 16 is the least.
BLOCK_TOKENS = {"cpu": 128, "cuda": 16}
# A context that we choose is whole blocks of the largest common size.
ROUND_TOKENS = 128
# vLLM's word for "as many tokens as the cache holds".
AUTO = -1

Source = Literal["measured", "estimated", "given"]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What spec and settings ask for, as far as memory depends on it.

    Attributes:
        platform: `cpu` or `cuda`.
        ranks: of tensor parallelism.
        dtype: kind of number to compute with; None: the model's own.
        max_model_len: tokens of context that the spec asks for; None: as many as the model and its cache have.
        longest: tokens of context that the operator allows where the spec does not say.
        kv_cache_mb: MiB of cache per rank that spec or settings ask for; None: ours to choose.
        cache_dtype: kind of number in the cache; None: as computed with.
        block_tokens: of a block of the cache.
        batch_tokens, batch_sequences: of one step.
        lora_places, lora_rank: how many LoRA adapters the engine has room for, each of this rank; 0: none.
    """

    platform: str
    ranks: int = 1
    dtype: str | None = None
    max_model_len: int | None = None
    longest: int | None = None
    kv_cache_mb: int | None = None
    cache_dtype: str | None = None
    block_tokens: int = BLOCK_TOKENS["cpu"]
    batch_tokens: int = BATCH_TOKENS
    batch_sequences: int = BATCH_SEQUENCES
    lora_places: int = 0
    lora_rank: int = 0


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank needs.

    Attributes:
        fixed_mb: MiB of weights, room for adapters, workspace and process: all but the KV cache.
        weights_mb: of that, the weights.
        kv_bytes_per_token: that a token takes of the cache, at most; None: not known.
        is_exact: whether it takes just that, so that what fits can be told before the engine is asked.
        has_cache: whether there is a KV cache at all.
        context: tokens that the model was made for; None: not known.
        source: `measured` here before, `estimated` from the files, `given` by who asked.
    """

    fixed_mb: int
    weights_mb: int = 0
    kv_bytes_per_token: int | None = None
    is_exact: bool = False
    has_cache: bool = True
    context: int | None = None
    source: Source = "estimated"


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """The KV cache that an engine is given.

    Attributes:
        kv_cache_mb: MiB per rank.
        max_model_len: tokens of context to ask vLLM for; None: the model's own; AUTO: what vLLM finds to fit.
        fits_tokens: the longest request that fits, where one of `max_model_len` as asked does not; None: it does.
    """

    kv_cache_mb: int
    max_model_len: int | None = None
    fits_tokens: int | None = None


def read_asked(
    spec: ModelSpec,
    *,
    platform: str,
    kv_cache_mb: int | None,
    longest: int | None,
    lora_rank: int = 0,
) -> Asked:
    """What a spec asks for; the cache and the longest context are neuron.toml's, for specs that do not say.

    `lora_rank` is the highest of its adapters; 0: it has none, or their files are not here.
    """
    given = spec.engine_args or {}
    adapters = len(spec.lora or {})
    dtype = None if spec.dtype in (None, "auto") else spec.dtype
    return Asked(
        platform=platform,
        ranks=spec.tensor_parallel or 1,
        dtype=dtype or ("bfloat16" if platform == "cpu" else None),
        max_model_len=spec.max_model_len,
        longest=longest,
        kv_cache_mb=spec.kv_cache_mb or kv_cache_mb,
        cache_dtype=_word(given.get("kv_cache_dtype")),
        block_tokens=_count(given.get("block_size"), BLOCK_TOKENS[platform]),
        batch_tokens=_count(given.get("max_num_batched_tokens"), BATCH_TOKENS),
        batch_sequences=_count(given.get("max_num_seqs"), BATCH_SEQUENCES),
        lora_places=lora_places(adapters, platform) if adapters else 0,
        lora_rank=lora_room(lora_rank or USUAL_LORA_RANK) if adapters else 0,
    )


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and value != "auto" else None


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


def estimate(figures: Figures, asked: Asked) -> Estimate:
    """What a rank needs, as its files tell. On the CPU, whose budget is of weights and cache alone, only these."""
    weights_mb = to_mb(_loaded_bytes(figures, asked) / asked.ranks * WEIGHTS_FACTOR)
    adapters_mb = to_mb(_adapter_bytes(figures, asked) * asked.lora_places)
    process_mb = 0 if asked.platform == "cpu" else CUDA_PROCESS_MB + _workspace_mb(figures, asked)
    cache_bytes = _cache_bytes(asked)
    return Estimate(
        fixed_mb=weights_mb + adapters_mb + process_mb,
        weights_mb=weights_mb,
        kv_bytes_per_token=_kv_bytes_per_token(figures, asked.ranks, cache_bytes or 2),
        is_exact=figures.cache is CacheKind.FULL and cache_bytes is not None,
        has_cache=figures.cache is not CacheKind.NONE,
        context=figures.context,
    )


def _loaded_bytes(figures: Figures, asked: Asked) -> float:
    """Floats are read as the kind that is computed with, whatever kind the files have."""
    computed = _number_bytes(asked.dtype)
    untold = figures.tensor_bytes.get(UNTOLD, 0)
    if figures.dtype == "float32":
        untold = untold * computed // 4
    told = sum(
        size * computed / FLOAT_BYTES[kind] if kind in FLOAT_BYTES else size
        for kind, size in figures.tensor_bytes.items()
        if kind != UNTOLD
    )
    return untold + told


def _adapter_bytes(figures: Figures, asked: Asked) -> int:
    """Of the room for one LoRA adapter: a matrix on either side of each of the model's own, taken or not.

    Each rank has most of it: only the outer matrices of some are dealt to ranks.
    """
    width, queries = figures.hidden_size, figures.heads * figures.head_dim
    keys = figures.kv_heads * figures.head_dim
    attention = 2 * (width + queries) + 2 * (width + keys)
    experts = 3 * figures.experts * (width + figures.expert_width)
    ends = 2 * (width + figures.vocab_size)
    sides = figures.layers * (attention + experts) + ends
    return sides * asked.lora_rank * _number_bytes(asked.dtype)


def _number_bytes(dtype: str | None) -> int:
    """A model of float32 is computed with half of that, unless it is asked for."""
    return 4 if dtype in ("float", "float32") else 2


def _workspace_mb(figures: Figures, asked: Asked) -> int:
    activations = asked.batch_tokens * figures.hidden_size * BYTES_PER_ACTIVATION
    logits = asked.batch_sequences * figures.vocab_size * BYTES_PER_LOGIT
    return to_mb(activations + logits)


def _cache_bytes(asked: Asked) -> int | None:
    """Bytes of a number in the cache; None: a kind that is not known here."""
    if asked.cache_dtype is None:
        return _number_bytes(asked.dtype)
    if asked.cache_dtype.startswith("fp8"):
        return 1
    return {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4}.get(asked.cache_dtype)


def _kv_bytes_per_token(figures: Figures, ranks: int, cache_bytes: int) -> int | None:
    """For a mixed cache as if every layer kept all: the most that it can be."""
    if figures.cache is CacheKind.NONE:
        return None
    if figures.cache is CacheKind.LATENT:
        return figures.layers * figures.head_dim * cache_bytes or None
    heads = max(1, figures.kv_heads // ranks) if figures.kv_heads else 0
    return 2 * figures.layers * heads * figures.head_dim * cache_bytes or None


def least_cache_mb(needs: Estimate, asked: Asked) -> int:
    """The smallest cache with which the engine is of use: what is asked for, else one request that is not tiny."""
    if asked.kv_cache_mb is not None:
        return asked.kv_cache_mb
    own, per_token = _own_context(needs, asked), needs.kv_bytes_per_token
    if own is None or per_token is None:
        return min(UNTOLD_LEAST_MB, wanted_cache_mb(needs, asked))
    if asked.max_model_len is None:
        own = min(own, LEAST_TOKENS)
    least_mb = _request_mb(own, per_token, asked)
    return least_mb if needs.is_exact else min(UNTOLD_LEAST_MB, least_mb)


def wanted_cache_mb(needs: Estimate, asked: Asked) -> int:
    """The cache that an engine is given where there is room: what is asked for, else see WANTED_TOKENS."""
    if asked.kv_cache_mb is not None:
        return asked.kv_cache_mb
    if not needs.has_cache:
        return NO_CACHE_MB
    own, per_token = _own_context(needs, asked), needs.kv_bytes_per_token
    if own is None or per_token is None:
        return CPU_CACHE_MB if asked.platform == "cpu" else UNTOLD_CACHE_MB
    one_mb = _request_mb(own, per_token, asked)
    if asked.platform == "cpu":
        return max(CPU_CACHE_MB, one_mb) if asked.max_model_len else CPU_CACHE_MB
    tokens = min(WANTED_REQUESTS * own, WANTED_TOKENS)
    return max(one_mb, to_mb((tokens + ROUND_TOKENS) * per_token))


def choose_cache(needs: Estimate, asked: Asked, room_mb: int | None) -> Cache:
    """The cache for an engine that may have `room_mb` per rank for it; None: nobody knows.

    1. Its size: as asked; else as wanted, as far as there is room, but never under the least.
    2. What a token takes is not known: the context is as asked, else as allowed, else what vLLM finds to fit.
    3. The context that is asked for fits, or the model's own does: so be it.
    4. One that was asked for does not: `fits_tokens` tells what would.
    5. Nobody asked: it is lowered to what fits.
    """
    size_mb = wanted_cache_mb(needs, asked)
    if asked.kv_cache_mb is None and room_mb is not None:
        size_mb = max(least_cache_mb(needs, asked), min(size_mb, room_mb))
    own, per_token = _own_context(needs, asked), needs.kv_bytes_per_token
    if own is None or per_token is None or not needs.is_exact:
        auto = AUTO if needs.has_cache else None
        return Cache(
            kv_cache_mb=size_mb, max_model_len=asked.max_model_len or asked.longest or auto
        )
    if _request_mb(own, per_token, asked) <= size_mb:
        return Cache(kv_cache_mb=size_mb, max_model_len=None if own == needs.context else own)
    fits = fitting_tokens(size_mb, per_token, asked)
    if asked.max_model_len is not None or not fits:
        return Cache(kv_cache_mb=size_mb, fits_tokens=fits)
    return Cache(kv_cache_mb=size_mb, max_model_len=fits)


def _own_context(needs: Estimate, asked: Asked) -> int | None:
    """The tokens that are asked for, else those of the model as far as the operator allows."""
    if asked.max_model_len is not None:
        return asked.max_model_len
    known = [length for length in (needs.context, asked.longest) if length is not None]
    return min(known) if known else None


def _request_mb(tokens: int, per_token: int, asked: Asked) -> int:
    """MiB for one request of so many tokens, with the block that vLLM keeps for itself."""
    blocks = math.ceil(tokens / asked.block_tokens) + 1
    return to_mb(blocks * asked.block_tokens * per_token)


def fitting_tokens(kv_cache_mb: int, per_token: int, asked: Asked) -> int:
    """The longest request that surely fits a cache, in whole blocks; 0: none does."""
    block = max(ROUND_TOKENS, asked.block_tokens)
    return max(0, kv_cache_mb * MIB // per_token // block - 1) * block


def to_mb(size_bytes: float) -> int:
    """MiB, rounded up."""
    return math.ceil(size_bytes / MIB)
