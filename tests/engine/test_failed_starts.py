# SPDX-License-Identifier: GPL-3.0-or-later
"""A start that fails says why, in the words of whoever knows, and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuron.host.engine import StartFailedError
from neuron.host.engines.vllm import VllmEngine

Change = Callable[[Path], object]


def _config(**fields: Any) -> Change:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | fields))

    return change


def _cut(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _nothing(path: Path) -> None: ...


# How the model's directory is changed, what the spec says, the kind of failure, and what its message tells.
CASES: dict[str, tuple[Change, dict[str, Any], str, str]] = {
    "unknown model type": (
        _config(model_type="foo", architectures=["FooForCausalLM"]),
        {},
        "unsupported_architecture",
        "foo",
    ),
    "unknown architecture": (
        _config(architectures=["FooForCausalLM"]),
        {},
        "unsupported_architecture",
        "FooForCausalLM",
    ),
    "weights cut off": (_cut, {}, "corrupt_weights", "model.safetensors"),
    "no weights": (
        lambda path: (path / "model.safetensors").unlink(),
        {},
        "corrupt_weights",
        "Cannot find any model weights",
    ),
    "weights of another config": (
        _config(intermediate_size=640),
        {},
        "corrupt_weights",
        "640",
    ),
    "a context beyond the model's": (_nothing, {"max_model_len": 100_000}, "invalid_spec", "4096"),
    "heads that cannot be shared": (_nothing, {"tensor_parallel": 3}, "tp_infeasible", "(3)"),
    "a cache that is too small": (
        _nothing,
        {"kv_cache_mb": 1},
        "insufficient_vram",
        "max seq len (4096)",
    ),
    "a cache larger than the memory": (
        _nothing,
        {"kv_cache_mb": 4_000_000},
        "insufficient_vram",
        "less than requested",
    ),
    "an unknown quantization": (_nothing, {"quant": "nope"}, "invalid_spec", "nope"),
    "an unknown dtype": (_nothing, {"dtype": "int3"}, "invalid_spec", "int3"),
    "an unknown parser": (_nothing, {"tool_parser": "nope"}, "invalid_spec", "nope"),
    "a template that is none": (
        _nothing,
        {"chat_template": "{% if %}"},
        "invalid_spec",
        "Template",
    ),
    "a value of the wrong type": (
        _nothing,
        {"engine_args": {"max_num_seqs": "many"}},
        "invalid_spec",
        "max-num-seqs",
    ),
    "code from the repository": (
        _nothing,
        {"engine_args": {"trust_remote_code": True}},
        "invalid_spec",
        "trust_remote_code",
    ),
}


@pytest.mark.parametrize(("change", "spec", "kind", "tells"), CASES.values(), ids=CASES.keys())
async def test_a_failed_start_says_why(
    change: Change,
    spec: dict[str, Any],
    kind: str,
    tells: str,
    tmp_path: Path,
    run_dir: Path,
    make_start: Any,
) -> None:
    path = tmp_path / "model"
    shutil.copytree(make_start(run_dir).model_path, path)
    change(path)
    with pytest.raises(StartFailedError) as raised:
        await VllmEngine().start(make_start(run_dir, path, **spec), lambda phase: None)
    failure = raised.value
    assert failure.kind == kind, str(failure)
    assert tells in str(failure)
    assert failure.suggestion
    assert list(run_dir.iterdir()) == []
