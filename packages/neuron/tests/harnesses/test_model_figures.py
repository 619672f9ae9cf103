# SPDX-License-Identifier: GPL-3.0-or-later
import json
import struct
from pathlib import Path

import pytest

from neuron import demo
from neuron.harnesses.figures import CacheKind, Figures
from neuron.harnesses.model_figures import read_model, weights_files


def write_safetensors(file: Path, **bytes_by_kind: int) -> None:
    """A header alone: nobody reads further."""
    tensors, end = {}, 0
    for kind, size in bytes_by_kind.items():
        tensors[kind] = {"dtype": kind, "shape": [], "data_offsets": [end, end + size]}
        end += size
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)


def test_the_demo_model_is_read_whole() -> None:
    found = read_model(demo.path())
    assert found.cache is CacheKind.FULL
    assert (found.layers, found.heads, found.kv_heads, found.head_dim) == (4, 4, 2, 64)
    assert (found.context, found.vocab_size) == (4096, 2048)
    assert list(found.tensor_bytes) == ["BF16"]
    assert found.tensor_bytes["BF16"] < (demo.path() / "model.safetensors").stat().st_size


def test_only_headers_are_read_and_kinds_are_kept_apart(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model-1.safetensors", BF16=40_000_000_000, F32=8)
    write_safetensors(tmp_path / "model-2.safetensors", BF16=1)
    assert read_model(tmp_path).tensor_bytes == {"BF16": 40_000_000_001, "F32": 8}


@pytest.mark.parametrize(
    ("files", "index", "loaded"),
    [
        (["a.safetensors", "b.bin"], None, ["a.safetensors"]),
        (["a.bin", "b.bin", "c.pt"], None, ["a.bin", "b.bin"]),
        (["a.gguf"], None, ["a.gguf"]),
        (["consolidated.safetensors", "model.safetensors"], None, ["model.safetensors"]),
        (["consolidated.safetensors"], None, ["consolidated.safetensors"]),
        (["a.safetensors", "b.safetensors"], '{"weight_map": {"x": "b.safetensors"}}', ["b.safetensors"]),
        (["a.safetensors"], '{"weight_map": {"x": "../../secret"}}', []),
        (["a.safetensors"], "broken", ["a.safetensors"]),
        ([], None, []),
    ],
)  # fmt: skip
def test_of_weights_in_several_forms_one_is_loaded(
    tmp_path: Path, files: list[str], index: str | None, loaded: list[str]
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(index)
    assert [file.name for file in weights_files(tmp_path)] == loaded


def test_what_has_no_header_is_as_large_as_its_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x" * 100)
    assert read_model(tmp_path) == Figures(tensor_bytes={"?": 100})
    (tmp_path / "model.safetensors").write_bytes(b"x" * 50)
    assert read_model(tmp_path).tensor_bytes == {"?": 50}
    assert read_model(tmp_path, ["model.gguf"]).tensor_bytes == {"?": 100}


def test_broken_files_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert read_model(tmp_path) == Figures()
