# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.harnesses.figures import CacheKind, Figures, read_figures

PLAIN = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


def read(tokenizer: dict[str, Any] | None = None, **changes: Any) -> Figures:
    return read_figures({**PLAIN, **changes}, tokenizer or {}, {"BF16": 100})


def test_a_plain_model_is_read_whole() -> None:
    assert read() == Figures(
        tensor_bytes={"BF16": 100},
        architecture="LlamaForCausalLM",
        dtype="bfloat16",
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        hidden_size=4096,
        vocab_size=128256,
        expert_width=14336,
        context=131072,
        cache=CacheKind.FULL,
    )


def test_the_feed_forward_part_may_have_experts() -> None:
    seen = read(num_experts=64, moe_intermediate_size=768)
    assert (seen.experts, seen.expert_width) == (64, 768)


def test_nothing_said_is_nothing_known() -> None:
    assert read_figures({}, {}, {}) == Figures()
    assert read_figures({"quantization": 4}, {}, {}).names_nothing
    assert not read_figures({"model_type": "new"}, {}, {}).names_nothing
    assert not read_figures({"architectures": ["A"]}, {}, {}).names_nothing


def test_the_part_about_text_counts_and_other_names_are_known() -> None:
    nested = {"text_config": {**PLAIN, "num_hidden_layers": 7}}
    seen = read_figures({"architectures": ["SeesForConditionalGeneration"], **nested}, {}, {})
    assert (seen.layers, seen.cache, seen.dtype) == (7, CacheKind.FULL, "bfloat16")
    gpt2 = {
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "n_positions": 1024,
    }
    old = read_figures(gpt2, {}, {})
    assert (old.layers, old.heads, old.kv_heads, old.head_dim) == (12, 12, 12, 64)
    assert (old.hidden_size, old.context, old.cache) == (768, 1024, CacheKind.FULL)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"head_dim": 256}, CacheKind.FULL),
        ({"sliding_window": None}, CacheKind.FULL),
        ({"sliding_window": 4096, "use_sliding_window": False}, CacheKind.FULL),
        ({"sliding_window": 262144}, CacheKind.FULL),
        ({"sliding_window": 4096}, CacheKind.MIXED),
        ({"layer_types": ["full_attention"] * 32, "sliding_window": 128}, CacheKind.FULL),
        ({"layer_types": ["full_attention", "sliding_attention"]}, CacheKind.MIXED),
        ({"layer_types": ["linear_attention", "full_attention"]}, CacheKind.MIXED),
        ({"layer_types": 3}, CacheKind.FULL),
        ({"layer_types": [["full_attention"]]}, CacheKind.MIXED),
        ({"full_attention_interval": 4}, CacheKind.MIXED),
        ({"is_encoder_decoder": True}, CacheKind.MIXED),
        ({"architectures": ["MambaModel"]}, CacheKind.MIXED),
        ({"architectures": None}, CacheKind.MIXED),
        (
            {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128},
            CacheKind.LATENT,
        ),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_topk": 2048}, CacheKind.MIXED),
        ({"architectures": ["BertModel"], "model_type": "bert"}, CacheKind.NONE),
        ({"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}, CacheKind.NONE),
    ],
)
def test_how_the_cache_grows(changes: dict[str, Any], kind: CacheKind) -> None:
    assert read(**changes).cache == kind


def test_a_latent_cache_is_one_narrow_head() -> None:
    found = read(kv_lora_rank=512, qk_rope_head_dim=64)
    assert (found.kv_heads, found.head_dim) == (1, 576)


@pytest.mark.parametrize(
    ("tokenizer", "changes", "context"),
    [
        ({}, {}, 131072),
        ({"model_max_length": 8192}, {}, 8192),
        ({"model_max_length": 10**30}, {}, 131072),
        ({}, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 131072),
        ({}, {"rope_scaling": {"type": "linear", "factor": 4.0}}, None),
        ({}, {"rope_scaling": {"rope_type": "longrope"}}, None),
        ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 131072),
        ({}, {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, None),
        ({}, {"max_position_embeddings": None}, None),
        ({"model_max_length": 8192}, {"max_position_embeddings": None}, None),
        ({}, {"rope_scaling": "x"}, 131072),
        ({}, {"rope_scaling": {"rope_type": ["yarn"]}}, None),
    ],
)
def test_the_context_is_what_the_model_was_made_for(
    tokenizer: dict[str, Any], changes: dict[str, Any], context: int | None
) -> None:
    assert read(tokenizer, **changes).context == context


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
VALUES = st.recursive(
    LEAVES, lambda each: st.lists(each) | st.dictionaries(st.text(max_size=3), each), max_leaves=4
)
NAMES = (
    "architectures model_type text_config dtype torch_dtype num_hidden_layers hidden_size head_dim layer_types "
    "rope_scaling rope_parameters sliding_window kv_lora_rank qk_rope_head_dim max_position_embeddings is_decoder"
).split()


@given(odd=st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=3))
def test_values_of_any_kind_are_read_without_a_fault(odd: dict[str, Any]) -> None:
    read(**odd)
    read_figures({"text_config": odd}, odd, {})
