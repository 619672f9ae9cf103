# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory that cannot be loaded is told from its files."""

import struct
from pathlib import Path

import pytest

from neuron.host.engine import StartFailedError
from neuron.host.engines.vllm_files import check_files

HEADER = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
WHOLE = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    return tmp_path


def refused(path: Path) -> tuple[str, str]:
    with pytest.raises(StartFailedError) as raised:
        check_files(path)
    return raised.value.kind, str(raised.value)


def test_a_whole_model_passes(model: Path) -> None:
    check_files(model)


def test_a_model_may_have_its_weights_in_another_format(model: Path) -> None:
    (model / "model.safetensors").unlink()
    check_files(model)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "no") == ("empty_repo", f"there is no directory {tmp_path / 'no'}")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_what_every_model_has_is_missing(model: Path, missing: str) -> None:
    (model / missing).unlink()
    kind, message = refused(model)
    assert kind == "empty_repo"
    assert missing in message


@pytest.mark.parametrize(
    "content",
    [
        WHOLE[:-1],
        WHOLE + b"x",
        WHOLE[:20],
        WHOLE[:4],
        b"",
        b"no weights at all" * 9,
        bytes(16),
        WHOLE.replace(b'"a"', b'"\xff"'),
    ],
)
def test_weights_that_are_none_or_cut_off(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    kind, message = refused(model)
    assert kind == "corrupt_weights"
    assert "model.safetensors" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1]", "config.json is no object"),
        ('{"layer_types": 3}', "`layer_types` in config.json is no list"),
        ('{"rope_scaling": "x"}', "`rope_scaling` in config.json is no object"),
        ('{"text_config": [1]}', "`text_config` in config.json is no object"),
    ],
)
def test_a_config_that_says_things_of_another_kind(model: Path, content: str, reason: str) -> None:
    (model / "config.json").write_text(content)
    assert refused(model) == ("corrupt_weights", reason)


def test_nothing_said_is_no_fault_of_a_config(model: Path) -> None:
    (model / "config.json").write_text('{"layer_types": null, "rope_scaling": false}')
    check_files(model)


@pytest.mark.parametrize("content", ["{", "[" * 100_000])
def test_a_config_that_is_no_json(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    kind, message = refused(model)
    assert kind == "corrupt_weights"
    assert "config.json" in message
