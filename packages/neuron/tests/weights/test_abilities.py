# SPDX-License-Identifier: GPL-3.0-or-later
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cortex_core.node import Limits
from neuron import demo
from neuron.weights.abilities import Abilities, read_abilities

TALKS = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
HERMES = "{% if tools %}<tool_call>{% endif %}"


def write(folder: Path, **files: Any) -> Path:
    """Files of a model, by their names without `.json`."""
    for name, said in files.items():
        (folder / f"{name}.json").write_text(said if isinstance(said, str) else json.dumps(said))
    return folder


def test_the_demo_model_is_told_as_its_engine_tells_it() -> None:
    found = read_abilities(demo.path())
    assert found.capabilities == ["text", "tools", "reasoning"]
    assert found.limits == Limits(context=4096, output=4096)


@pytest.mark.parametrize(
    ("files", "capabilities"),
    [
        ({"config": TALKS}, ["text"]),
        ({"config": TALKS, "tokenizer_config": {"chat_template": HERMES}}, ["text", "tools"]),
        (
            {"config": TALKS, "tokenizer_config": {"chat_template": [{"name": "d", "template": HERMES}]}},
            ["text", "tools"],
        ),
        ({"config": TALKS, "chat_template": {"chat_template": HERMES}}, ["text", "tools"]),
        (
            {"config": TALKS, "tokenizer": {"added_tokens": [{"content": "<think>"}, {"content": "</think>"}]}},
            ["text", "reasoning"],
        ),
        (
            {"config": TALKS, "tokenizer_config": {"added_tokens_decoder": {"7": {"content": "[TOOL_CALLS]"}}}},
            ["text", "tools"],
        ),
        (
            {"config": {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}}},
            ["text", "vision"],
        ),
        ({"config": {"architectures": ["BertModel"]}}, ["embeddings", "score", "rerank"]),
        ({"config": TALKS, "modules": []}, ["embeddings", "score", "rerank"]),
        ({"config": {"architectures": ["BertForSequenceClassification"]}}, ["score", "rerank"]),
        ({"config": {"architectures": ["Unheard"]}}, []),
        ({"config": "no json", "tokenizer": "no json", "tokenizer_config": "[1]"}, []),
        ({"config": "[" * 100_000, "tokenizer": '{"x":' * 100_000}, []),
        ({"config": {**TALKS, "layer_types": 3, "rope_scaling": "x"}}, ["text"]),
        ({}, []),
    ],
)  # fmt: skip
def test_files_tell_what_a_model_could_do(
    tmp_path: Path, files: dict[str, Any], capabilities: list[str]
) -> None:
    assert read_abilities(write(tmp_path, **files)).capabilities == capabilities


def test_a_template_in_a_file_of_its_own_is_read(tmp_path: Path) -> None:
    write(tmp_path, config=TALKS)
    (tmp_path / "chat_template.jinja").write_text(HERMES)
    assert read_abilities(tmp_path).capabilities == ["text", "tools"]


def test_what_does_not_talk_has_no_longest_answer(tmp_path: Path) -> None:
    write(tmp_path, config={"architectures": ["BertModel"], "max_position_embeddings": 512})
    assert read_abilities(tmp_path).limits == Limits(context=512, output=None)


def test_files_that_change_are_read_again(tmp_path: Path) -> None:
    assert read_abilities(tmp_path) == Abilities()
    write(tmp_path, config=TALKS)
    assert read_abilities(tmp_path).limits.context == 2048
    write(tmp_path, config={**TALKS, "max_position_embeddings": 4096})
    os.utime(tmp_path / "config.json", ns=(1, 1))
    assert read_abilities(tmp_path).limits.context == 4096
