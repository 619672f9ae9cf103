# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from neuron.weights.quants import Gguf, find_gguf, group_ggufs, is_gguf_only, nearest_tags


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m.gguf", "q4_k_m"),
        ("llama-2-7b.Q5_0.gguf", "Q5_0"),
        ("model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model_IQ4_XS.gguf", "IQ4_XS"),
        ("model-BF16.gguf", "BF16"),
        ("Q8_0/model-Q8_0.gguf", "Q8_0"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Q6_K.gguf", "Q6_K"),
        ("model.gguf", "model"),
        ("model.GGUF", "model"),
    ],
)
def test_a_file_s_tag_is_what_its_name_ends_in(name: str, tag: str) -> None:
    assert group_ggufs([name]) == [Gguf(tag=tag, files=[name])]


def test_parts_are_one_quant() -> None:
    names = [f"q8/m-Q8_0-0000{part}-of-00002.gguf" for part in (2, 1)]
    assert group_ggufs([*names, "m-Q4_0.gguf"]) == [
        Gguf(tag="Q4_0", files=["m-Q4_0.gguf"]),
        Gguf(tag="Q8_0", files=[names[1], names[0]], of=2),
    ]


def test_what_lies_beside_a_model_is_no_quant() -> None:
    names = ["mmproj-F16.gguf", "q/mmproj-model-f16.gguf", "imatrix_unsloth.gguf", "a.safetensors"]
    assert group_ggufs(names) == []


@pytest.mark.parametrize(
    "quant", ["Q4_K_M", "q4_k_m", "Q4-K-M", "q4.k.m", "q4km", "m-q4_k_m.gguf", "M-Q4_K_M.gguf"]
)
def test_a_quant_is_found_however_it_is_written(quant: str) -> None:
    known = group_ggufs(["m-Q4_K_S.gguf", "m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf"])
    found = find_gguf(quant, known)
    assert found
    assert found.files == ["m-Q4_K_M.gguf"]


@pytest.mark.parametrize("quant", ["Q4_K", "fp8", "Q4_K_L", "m", ""])
def test_a_quant_that_is_not_there_is_not_found(quant: str) -> None:
    assert find_gguf(quant, group_ggufs(["m-Q4_K_M.gguf", "m-Q8_0.gguf"])) is None


def test_the_nearest_are_suggested() -> None:
    known = group_ggufs(["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf", "m-BF16.gguf"])
    assert nearest_tags("q4_k_l", known)[:2] == ["Q4_K_S", "Q4_K_M"]
    assert nearest_tags("bf-17", known) == ["BF16"]
    assert nearest_tags("zzzz", known) == []


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        ("Q4_K_M", True),
        ("iq2_xxs", True),
        ("UD-Q4_K_XL", True),
        ("m.gguf", True),
        ("fp8", False),
        ("awq", False),
        ("gptq_marlin", False),
        ("bitsandbytes", False),
        ("mxfp4", False),
    ],
)
def test_methods_of_vllm_are_told_from_gguf_quants(quant: str, expected: bool) -> None:
    assert is_gguf_only(quant) is expected
