# SPDX-License-Identifier: GPL-3.0-or-later
from collections.abc import Iterable

import pytest

from neuron.weights.choosing import (
    choose_companions,
    choose_files,
    choose_gguf,
    guess_base,
    missing_files,
    needs_base,
    refuse_gguf,
)
from neuron.weights.refusals import WeightsError

SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
GGUFS = ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
SHARDS = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]


def names(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize(
    ("there", "quant", "chosen"),
    [
        # Safetensors before the same weights for others.
        (
            "model.safetensors pytorch_model.bin tf_model.h5 flax_model.msgpack onnx/model.onnx rust_model.ot",
            None,
            "model.safetensors",
        ),
        # Nothing of other programs' folders, or of the training.
        (
            "model.safetensors original/consolidated.00.pth metal/model.bin optimizer.pt training_args.bin "
            "trainer_state.json README.md LICENSE .gitattributes code.py image.png",
            None,
            "model.safetensors",
        ),
        # An index goes with its weights alone.
        (
            "model.safetensors.index.json pytorch_model.bin.index.json pytorch_model.bin "
            + " ".join(SHARDS),
            None,
            "model.safetensors.index.json " + " ".join(SHARDS),
        ),
        # The same twice: in parts, and in one.
        ("model.safetensors " + " ".join(SHARDS), None, " ".join(SHARDS)),
        # Mistral's own format, as vLLM prefers it; without its configuration it is no model.
        (
            "params.json tekken.json consolidated.safetensors model.safetensors",
            None,
            "params.json tekken.json consolidated.safetensors",
        ),
        ("consolidated.safetensors model.safetensors", None, "model.safetensors"),
        ("params.json consolidated.safetensors", None, "params.json consolidated.safetensors"),
        # Older forms, where there is nothing else.
        (
            "pytorch_model.bin training_args.bin scheduler.bin",
            None,
            "pytorch_model.bin",
        ),
        ("weights.pt optimizer.pt", None, "weights.pt"),
        # What an embedder's modules need, and templates.
        (
            "model.safetensors modules.json 1_Pooling/config.json 2_Dense/model.safetensors openvino/a.json "
            "additional_chat_templates/tool.jinja chat_template.jinja",
            None,
            "1_Pooling/config.json additional_chat_templates/tool.jinja chat_template.jinja modules.json "
            "2_Dense/model.safetensors model.safetensors",
        ),
        # A quant that names a GGUF takes that alone; a method of vLLM takes none.
        ("model.safetensors " + " ".join(GGUFS), "q8_0", "m-Q8_0.gguf"),
        ("model.safetensors " + " ".join(GGUFS), "fp8", "model.safetensors"),
        ("model.safetensors " + " ".join(GGUFS), None, "model.safetensors"),
        ("m-Q4_0.gguf mmproj-F16.gguf", None, "m-Q4_0.gguf"),
    ],
)
def test_only_what_vllm_needs_is_chosen(there: str, quant: str | None, chosen: str) -> None:
    assert sorted(choose_files(names(there), quant).files) == sorted(names(chosen))


def refusal(there: Iterable[str], quant: str | None) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        choose_files(list(there), quant)
    return caught.value


def test_a_quant_that_is_not_there_is_told_with_the_nearest() -> None:
    error = refusal(GGUFS, "Q4_K_S")
    assert error.kind == "quant_not_found"
    assert "no GGUF quant 'Q4_K_S'" in str(error)
    assert error.suggestion == "Did you mean Q4_K_M? There are: Q4_K_M, Q8_0."
    assert refusal(GGUFS, "awq").suggestion == "There are: Q4_K_M, Q8_0."
    assert refusal(["model.safetensors"], "Q4_K_M").suggestion == "There are: none."


def test_of_several_quants_one_must_be_named() -> None:
    error = refusal(GGUFS, None)
    assert error.kind == "quant_not_found"
    assert error.suggestion == "Set `quant` to one of: Q4_K_M, Q8_0."


def test_a_repository_that_lacks_a_part_is_told_before_it_comes() -> None:
    error = refusal(["m-Q8_0-00001-of-00002.gguf"], None)
    assert error.kind == "corrupt_weights"
    assert "m-Q8_0-00002-of-00002.gguf" in str(error)
    assert refusal(SHARDS[1:], None).kind == "corrupt_weights"


def test_a_repository_without_weights_is_empty() -> None:
    assert refusal(["README.md", *SMALL], None).kind == "empty_repo"
    assert refusal([], "fp8").kind == "empty_repo"


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/model.safetensors",
        "a\\b.safetensors",
        ".x/a.safetensors",
        "a\0.safetensors",
    ],
)
def test_a_name_that_would_lead_elsewhere_is_never_chosen(name: str) -> None:
    assert refusal([name], None).kind == "empty_repo"


@pytest.mark.parametrize(
    ("there", "quant", "missing"),
    [
        ([*SMALL, "model.safetensors"], None, []),
        ([*SMALL, *SHARDS, "model.safetensors.index.json"], None, []),
        ([*SMALL, SHARDS[0], "model.safetensors.index.json"], None, ["weights"]),
        ([*SMALL, "a.safetensors", "model.safetensors.index.json"], None, []),
        (SMALL, None, ["weights"]),
        (["config.json", "model.safetensors"], None, ["tokenizer.json"]),
        (["tokenizer.json", "model.safetensors"], None, ["config.json"]),
        (["params.json", "tekken.json", "consolidated.safetensors"], None, []),
        (["adapter_config.json", "adapter_model.safetensors"], None, []),
        (["m-Q8_0.gguf"], None, []),
        (["m-Q8_0.gguf"], "q8-0", []),
        (["m-Q8_0.gguf"], "q4_0", ["weights"]),
        ([*SMALL, "model.safetensors"], "q4_0", ["weights"]),
        ([*SMALL, "model.safetensors"], "fp8", []),
    ],
)
def test_what_is_missing_is_told(there: list[str], quant: str | None, missing: list[str]) -> None:
    indexed = SHARDS if SHARDS[0] in there else []
    assert missing_files(there, quant, lambda _: indexed) == missing


def test_weights_that_the_index_names_are_missed() -> None:
    there = [*SMALL, "a.safetensors", "model.safetensors", "model.safetensors.index.json"]
    assert missing_files(there, None, lambda _: ["a.safetensors", "b.safetensors"]) == [
        "b.safetensors"
    ]


def test_gguf_is_meant_where_nothing_else_is_there_or_the_quant_names_it() -> None:
    assert choose_gguf(["m-Q8_0.gguf"], None) == choose_files(["m-Q8_0.gguf"], None)
    both = [*SMALL, "model.safetensors", *GGUFS]
    assert choose_gguf(both, "q4-k-m") == choose_files(both, "Q4_K_M")
    assert choose_gguf(both, None) is None
    assert choose_gguf([*SMALL, "model.safetensors"], "fp8") is None
    with pytest.raises(WeightsError, match="no GGUF quant"):
        choose_gguf([*SMALL, "model.safetensors"], "q8_0")


def test_a_refusal_of_gguf_names_the_plugin_and_where_it_goes() -> None:
    error = refuse_gguf("Q8_0")
    assert error.kind == "unsupported_architecture"
    assert str(error) == (
        "its weights are GGUF (Q8_0), which vLLM reads with vllm-gguf-plugin only, and on GPUs only: engines here have "
        "none"
    )
    assert "install vllm-gguf-plugin in the environment that engines run in" in error.suggestion


def test_a_gguf_s_base_is_what_its_card_says_or_its_name() -> None:
    assert guess_base("a/m-GGUF", None) == "a/m"
    assert guess_base("a/m.gguf", "b/c") == "b/c"
    assert guess_base("a/m-GGUF", ["b/c"]) == "b/c"
    assert guess_base("a/m-GGUF", ["b/c", "d/e"]) == "a/m"
    assert guess_base("a/m", None) is None


def test_a_gguf_needs_its_base_where_it_comes_alone() -> None:
    assert needs_base(choose_files(["m-Q8_0.gguf"], None))
    assert needs_base(choose_files(["m-Q8_0.gguf", "config.json"], None))
    assert not needs_base(choose_files(["m-Q8_0.gguf", *SMALL], None))
    assert not needs_base(choose_files(["model.safetensors"], None))


def test_of_the_base_come_the_small_files() -> None:
    there = [*SMALL, "model.safetensors", "model.safetensors.index.json", "chat_template.jinja"]
    assert choose_companions(there) == ["chat_template.jinja", *SMALL]
