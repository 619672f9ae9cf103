# SPDX-License-Identifier: GPL-3.0-or-later
"""GGUF files: loaded where engines have vLLM's plugin for them, else refused with what to install."""

import sys
from pathlib import Path

import pytest

from cortex_core.control import ModelSpec
from cortex_core.errors import LoadRefusedError
from neuron.harnesses.gguf import find_gguf, reads_gguf
from neuron.weights.choosing import refuse_gguf

FILES = ["config.json", "tokenizer.json", "m-Q4_K_M.gguf", "m-Q8_0.gguf"]


def make(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def refusal(folder: Path, quant: str | None, *, can_read: bool) -> LoadRefusedError:
    with pytest.raises(LoadRefusedError) as caught:
        find_gguf(ModelSpec(model_id="a/m", quant=quant), folder, can_read=can_read)
    return caught.value


@pytest.mark.parametrize(
    ("names", "quant", "found"),
    [
        (FILES, "q8-0", ["m-Q8_0.gguf"]),
        ([*FILES, "model.safetensors"], None, []),
        (["config.json", "tokenizer.json", "model.safetensors"], "fp8", []),
        (
            [*FILES[:2], "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"],
            None,
            ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"],
        ),
    ],
)
def test_the_files_that_are_meant_are_found(
    tmp_path: Path, names: list[str], quant: str | None, found: list[str]
) -> None:
    spec = ModelSpec(model_id="a/m", quant=quant)
    assert find_gguf(spec, make(tmp_path, names), can_read=True) == found


def test_what_engines_cannot_read_is_refused_with_what_to_install(tmp_path: Path) -> None:
    error = refusal(make(tmp_path, FILES), "Q8_0", can_read=False)
    assert error.facts == refuse_gguf("Q8_0").refuse("a/m").facts
    assert "install vllm-gguf-plugin" in str(error.facts["suggestion"])


def test_a_file_alone_says_what_goes_beside_it(tmp_path: Path) -> None:
    error = refusal(make(tmp_path, ["m-Q8_0.gguf"]), None, can_read=True)
    assert error.facts["load_kind"] == "empty_repo"
    assert "beside its GGUF (Q8_0)" in str(error.facts["reason"])
    assert "Put config.json and the tokenizer's files" in str(error.facts["suggestion"])


def test_a_quant_that_is_not_there_is_told(tmp_path: Path) -> None:
    error = refusal(make(tmp_path, FILES), "Q6_K", can_read=True)
    assert error.facts["load_kind"] == "quant_not_found"


def interpreter(folder: Path, *, says: int) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\nexit {says}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("says", "reads"), [(0, True), (1, False)])
async def test_another_interpreter_is_asked_for_the_plugin(
    tmp_path: Path, says: int, reads: bool
) -> None:
    assert await reads_gguf("cuda", interpreter(tmp_path, says=says)) is reads


async def test_none_can_where_the_plugin_is_missing_or_computes_nothing(tmp_path: Path) -> None:
    assert not await reads_gguf("cuda", sys.executable)
    assert not await reads_gguf("cuda", str(tmp_path / "none"))
    assert not await reads_gguf("cpu", interpreter(tmp_path, says=0))


async def test_our_own_interpreter_s_packages_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "vllm_gguf_plugin-0.0.5.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Name: vllm-gguf-plugin\nVersion: 0.0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert await reads_gguf("cuda", sys.executable)
