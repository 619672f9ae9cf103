# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model's config.json and the headers of its weights say of its size. Pure.

Whoever writes a config.json has names of his own for things; the ones that are read here are those that vLLM reads.
What is of another kind than it should be tells nothing.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

# Bytes of a number, as safetensors names its kind. The engine turns these into its own kind; others stay as they are.
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Of weights whose files have no header that tells.
UNTOLD = "?"
# Above this a tokenizer's limit says that it has none.
NO_LIMIT_TOKENS = 10**9


class CacheKind(StrEnum):
    """How a model's KV cache grows.

    full: by the same with each token, on every layer. latent: so too, and each rank has all of it (MLA).
    mixed: some layers keep less than all, by rules of their own. none: it has no cache.
    """

    FULL = "full"
    LATENT = "latent"
    MIXED = "mixed"
    NONE = "none"


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A model in numbers. None, or 0: its files do not tell.

    Attributes:
        tensor_bytes: bytes of its weights, by kind of number.
        architecture: the first that config.json names.
        dtype: the kind of number that it was made with.
        kv_heads, head_dim: of one layer; for a latent cache 1 and the latent's width.
        experts, expert_width: of the feed-forward part of one layer; a dense one is one expert.
        context: tokens that it was made for.
        names_nothing: its config.json says neither an architecture nor a kind of model.
        cache: how its KV cache grows; what is not known counts as mixed.
    """

    tensor_bytes: Mapping[str, int] = {}
    architecture: str | None = None
    dtype: str | None = None
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    hidden_size: int = 0
    vocab_size: int = 0
    experts: int = 1
    expert_width: int = 0
    context: int | None = None
    cache: CacheKind = CacheKind.MIXED
    names_nothing: bool = False


def read_figures(
    config: Mapping[str, Any], tokenizer: Mapping[str, Any], tensor_bytes: Mapping[str, int]
) -> Figures:
    """The figures of a model.

    Args:
        config: its config.json.
        tokenizer: its tokenizer_config.json.
        tensor_bytes: as in Figures.
    """
    text = _text_config(config)
    architecture = _first_word(config.get("architectures"))
    cache = _cache_kind(config, text, architecture)
    heads = _number(text, "num_attention_heads", "n_head", "num_heads")
    hidden_size = _number(text, "hidden_size", "n_embd", "d_model")
    kv_heads = _number(text, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads
    head_dim = _number(text, "head_dim") or (hidden_size // heads if heads else 0)
    if cache is CacheKind.LATENT:
        kv_heads, head_dim = 1, _number(text, "kv_lora_rank") + _number(text, "qk_rope_head_dim")
    return Figures(
        tensor_bytes=tensor_bytes,
        architecture=architecture,
        dtype=_dtype(text) or _dtype(config),
        layers=_number(text, "num_hidden_layers", "n_layer", "num_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=hidden_size,
        vocab_size=_number(text, "vocab_size"),
        experts=_number(text, "num_experts", "num_local_experts", "n_routed_experts") or 1,
        expert_width=_number(text, "moe_intermediate_size", "intermediate_size", "n_inner")
        or 4 * hidden_size,
        context=_context(text, tokenizer),
        cache=cache,
        names_nothing=bool(config) and architecture is None and not config.get("model_type"),
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about text, of a model that has several."""
    for name in ("text_config", "llm_config", "language_config"):
        nested = config.get(name)
        if isinstance(nested, Mapping):
            return nested
    return config


def _number(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _first_word(value: object) -> str | None:
    return value[0] if isinstance(value, list) and value and isinstance(value[0], str) else None


def _words(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _mapping(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) and value else None


def _dtype(config: Mapping[str, Any]) -> str | None:
    value = config.get("dtype") or config.get("torch_dtype")
    return value if isinstance(value, str) else None


# Each of these makes layers differ from one another, or keep less than every token.
_UNEVEN = (
    "attention_chunk_size", "attn_layer_indices", "attn_layer_period", "attn_type_list", "block_configs",
    "compress_ratios", "cross_attention_layers", "full_attention_interval", "hybrid_override_pattern", "index_topk",
    "layers_block_type", "linear_attn_config", "num_kv_shared_layers", "per_layer_config", "sliding_window_pattern",
    "ssm_cfg", "state_size", "v_head_dim",
)  # fmt: skip
_WRITES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def _cache_kind(
    config: Mapping[str, Any], text: Mapping[str, Any], architecture: str | None
) -> CacheKind:
    if "bert" in str(config.get("model_type", "")) and not config.get("is_decoder"):
        return CacheKind.NONE
    if architecture is None or not architecture.endswith(_WRITES) or text.get("is_encoder_decoder"):
        return CacheKind.MIXED
    latent = _number(text, "kv_lora_rank") and _number(text, "qk_rope_head_dim")
    uneven = [name for name in _UNEVEN if text.get(name) and not (latent and name == "v_head_dim")]
    kinds = _words(text.get("layer_types"))
    if uneven or set(kinds) - {"full_attention"} or (not kinds and _slides(text)):
        return CacheKind.MIXED
    return CacheKind.LATENT if latent else CacheKind.FULL


def _slides(text: Mapping[str, Any]) -> bool:
    window = _number(text, "sliding_window")
    longest = _number(text, "max_position_embeddings")
    return 0 < window < longest and text.get("use_sliding_window") is not False


_LONGEST = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_sequence_length",
    "max_seq_length", "seq_len",
)  # fmt: skip
# With these `max_position_embeddings` is the whole length; with others it is to be multiplied, or chosen.
_PLAIN_ROPES = frozenset({"default", "llama3", "yarn", "deepseek_yarn", "mrope"})


def _is_plain(kind: object) -> bool:
    return kind is None or (isinstance(kind, str) and kind in _PLAIN_ROPES)


def _context(text: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> int | None:
    ropes = _mapping(text.get("rope_parameters")) or _mapping(text.get("rope_scaling")) or {}
    each = ropes.values() if all(isinstance(v, Mapping) for v in ropes.values()) else [ropes]
    if any(not _is_plain(rope.get("rope_type", rope.get("type"))) for rope in each):
        return None
    lengths = [length for name in _LONGEST if (length := _number(text, name))]
    if not lengths:
        return None
    told = _number(tokenizer, "model_max_length")
    return min([*lengths, told] if 0 < told < NO_LIMIT_TOKENS else lengths)
