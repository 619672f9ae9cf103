# SPDX-License-Identifier: GPL-3.0-or-later
"""What a look at the files tells against a LoRA adapter."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from neuron.host.engine import StartFailedError
from neuron.host.engines.vllm_adapters import check_adapters

Shapes = dict[str, list[int]]

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
GOOD: Shapes = {f"{LAYER}.lora_A.weight": [4, 16], f"{LAYER}.lora_B.weight": [32, 4]}


def write_tensors(file: Path, shapes: Shapes) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(head)) + head + bytes(end))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
    write_tensors(
        folder / "model.safetensors", {"model.layers.0.self_attn.q_proj.weight": [32, 16]}
    )
    return folder


def make_adapter(folder: Path, shapes: Shapes, **config: Any) -> str:
    folder.mkdir()
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    write_tensors(folder / "adapter_model.safetensors", shapes)
    return str(folder)


def test_no_adapters_have_no_rank(tmp_path: Path) -> None:
    assert check_adapters({}, "m", tmp_path) == 0


def test_the_highest_rank_is_told(tmp_path: Path, model: Path) -> None:
    adapters = {
        "a": make_adapter(tmp_path / "a", GOOD),
        "b": make_adapter(tmp_path / "b", GOOD, r=8, rank_pattern={"q_proj": 12}),
    }
    assert check_adapters(adapters, "m", model) == 12


def test_modules_that_are_called_otherwise_are_left_to_the_engine(
    tmp_path: Path, model: Path
) -> None:
    shapes = {"base_model.model.other.lora_A.weight": [4, 99], "odd": [1, 1]}
    assert check_adapters({"a": make_adapter(tmp_path / "a", shapes)}, "m", model) == 4


@pytest.mark.parametrize(
    ("shapes", "config", "says"),
    [
        ({f"{LAYER}.lora_A.weight": [4, 8]}, {}, r"does not fit the model: .*lora_A.*\[4, 8\]"),
        ({f"{LAYER}.lora_B.weight": [8, 4]}, {}, r"does not fit the model: .*lora_B.*\[8, 4\]"),
        ({f"{LAYER}.lora_A.weight": [8, 16]}, {}, r"does not fit the model: .*\[8, 16\]"),
        ({LAYER.replace("0", "1") + ".lora_A.weight": [4, 16]}, {}, "does not fit the model"),
        (GOOD, {"r": 1000}, "has the rank 1000, and 512 is the highest"),
        (GOOD, {"r": 0}, "is not one of LoRA"),
        (GOOD, {"r": "x"}, "is not one of LoRA"),
        (GOOD, {"peft_type": "PROMPT_TUNING"}, "is not one of LoRA"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused(
    tmp_path: Path, model: Path, shapes: Shapes, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(StartFailedError, match=says) as raised:
        check_adapters({"a": make_adapter(tmp_path / "a", shapes, **config)}, "m", model)
    assert raised.value.kind == "invalid_spec"
    assert raised.value.suggestion


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 257, "m"])
def test_a_name_that_cannot_be_asked_for_is_refused(name: str, model: Path) -> None:
    with pytest.raises(StartFailedError) as raised:
        check_adapters({name: "/nowhere"}, "m", model)
    assert raised.value.kind == "invalid_spec"


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, model: Path, file: str) -> None:
    folder = make_adapter(tmp_path / "a", GOOD)
    (Path(folder) / file).unlink()
    with pytest.raises(StartFailedError, match=file) as raised:
        check_adapters({"a": folder}, "m", model)
    assert raised.value.kind == "empty_repo"


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_broken_file_is_named(tmp_path: Path, model: Path, file: str) -> None:
    folder = make_adapter(tmp_path / "a", GOOD)
    (Path(folder) / file).write_bytes(b"{")
    with pytest.raises(StartFailedError, match=file) as raised:
        check_adapters({"a": folder}, "m", model)
    assert raised.value.kind == "corrupt_weights"
