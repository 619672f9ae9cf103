# SPDX-License-Identifier: GPL-3.0-or-later
import json
import shlex
import tomllib

import pytest

from cortex_cli.trial.plan import MODELS, Trial


def make_trial(harness: str = "vllm") -> Trial:
    return Trial(harness=harness, gateway_port=1, metrics_port=2, neuron_port=3)


@pytest.mark.parametrize("harness", MODELS)
def test_files_are_toml_that_name_the_model_and_its_harness(harness: str) -> None:
    files = {name: tomllib.loads(text) for name, text in make_trial(harness).files("/kept").items()}
    assert files["models.toml"] == {"models": [{"id": MODELS[harness], "harness": harness}]}
    assert files["neuron.toml"]["default_models"] == [
        {"model_id": MODELS[harness], "harness": harness}
    ]
    assert files["neuron.toml"]["harnesses"] == [{"name": harness}]


def test_everything_listens_on_loopback_alone() -> None:
    trial = make_trial()
    files = {name: tomllib.loads(text) for name, text in trial.files("/kept").items()}
    assert files["cortex.toml"]["gateway"]["listen"] == "127.0.0.1:1"
    assert files["cortex.toml"]["gateway"]["metrics_listen"] == "127.0.0.1:2"
    assert (files["neuron.toml"]["listen"], files["neuron.toml"]["port"]) == ("127.0.0.1", 3)
    assert files["cortex.toml"]["neurons"] == [{"name": "here", "endpoint": "http://127.0.0.1:3"}]
    assert list(trial.addresses.values()) == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]


def test_lines_to_try_are_words_that_a_shell_understands() -> None:
    chat, models, completion, status = Trial().lines_to_try(".venv/bin/cortex")
    words = shlex.split(chat)
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:31313/v1/chat/completions"]
    assert json.loads(words[-1])["stream"] is True
    assert models == "curl http://127.0.0.1:31313/v1/models"
    assert json.loads(shlex.split(completion)[-1])["model"] == "helexa/demo"
    assert status == ".venv/bin/cortex status"


def test_another_port_is_told_to_status() -> None:
    assert (
        Trial(gateway_port=8).lines_to_try("cortex")[-1]
        == "cortex status --endpoint http://127.0.0.1:8"
    )
