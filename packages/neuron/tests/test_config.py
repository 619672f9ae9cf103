# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path

import pytest

from cortex_core.config import read_config
from cortex_core.control import ModelSpec
from cortex_core.errors import OperatorError
from neuron.config import Config, SourceSettings

ROOT = Path(__file__).parents[3]


def read(text: str, tmp_path: Path, **environ: str) -> Config:
    path = tmp_path / "neuron.toml"
    path.write_text(text)
    return read_config(Config, path, prefix="NEURON_", environ=environ)


def test_an_empty_file_is_a_vllm_daemon_on_the_usual_port(tmp_path: Path) -> None:
    config = read("", tmp_path)
    assert (config.listen, config.port, config.harness_names) == ("0.0.0.0", 13131, ["vllm"])
    assert config.default_models == []


def test_every_table_is_read(tmp_path: Path) -> None:
    text = """
        port = 1
        [[harnesses]]
        name = "echo"
        [[harnesses]]
        name = "vllm"
        [harness.vllm]
        python = "/opt/engine/bin/python"
        platform = "cpu"
        [harness.echo]
        start_timeout_s = 2
        [[default_models]]
        model_id = "a/b"
        kv_cache_mb = 64
        engine_args = {seed = 1}
    """
    config = read(text, tmp_path)
    assert config.harness_names == ["echo", "vllm"]
    assert config.harness.vllm.python == "/opt/engine/bin/python"
    assert config.harness.echo.start_timeout_s == 2.0
    assert config.default_models == [
        ModelSpec(model_id="a/b", kv_cache_mb=64, engine_args={"seed": 1})
    ]


def test_a_source_is_read_under_its_scheme(tmp_path: Path) -> None:
    text = """
        [harness.vllm]
        default_source = "mirror"
        download = false
        disk_budget_mb = 5
        [harness.vllm.sources.mirror]
        endpoint = "https://mirror.lan/hub"
        auth_env = "MIRROR_TOKEN"
        [harness.vllm.sources.huggingface]
        cache_dir = "/srv/hub"
    """
    vllm = read(text, tmp_path).harness.vllm
    assert (vllm.default_source, vllm.download, vllm.disk_budget_mb) == ("mirror", False, 5)
    assert vllm.sources == {
        "mirror": SourceSettings(endpoint="https://mirror.lan/hub", auth_env="MIRROR_TOKEN"),
        "huggingface": SourceSettings(cache_dir="/srv/hub"),
    }


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    config = read("port = 1", tmp_path, NEURON_PORT="2", NEURON_HARNESS__VLLM__KV_CACHE_MB="64")
    assert (config.port, config.harness.vllm.kv_cache_mb) == (2, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "line 1: unknown key `prot`. Did you mean `port`?"),
        ("port = 70000", "`port`"),
        ("drain_s = -1", "`drain_s`"),
        ("[harness.vllm]\npyton = 'x'", "line 2: unknown key `harness.vllm.pyton`"),
        ("[harness.vllm]\nplatform = 'tpu'", "tpu"),
        ("[admission]\nmax_running = 0", "`admission.max_running`"),
        ("[admission]\nmax_waiting = -1", "`admission.max_waiting`"),
        ("[admission]\nmax_wait_s = 0", "`admission.max_wait_s`"),
        ("[admission]\nmax_per_principal = 0", "`admission.max_per_principal`"),
        ("[[harnesses]]\nname = 'llama'", "there is no harness 'llama'; known are vllm, echo"),
        ("[[harnesses]]\nname='echo'\n[[harnesses]]\nname='echo'", "'echo' is there twice"),
        ("[[default_models]]\nmodel_id='a'\nharness='echo'", "wants the harness 'echo'"),
        (
            "[harness.vllm.sources.mirror]\nauth_env='A'",
            "the source 'mirror' has no `endpoint`",
        ),
        ("[harness.vllm.sources.Mirror]\nendpoint='http://a'", "lower case letters"),
        ("[harness.vllm.sources.m]\nendpoint='mirror.lan'", "is not http:// or https://"),
        ("[harness.vllm.sources.m]\nendpoint='http://me:pw@a'", "without a user in it"),
        ("[harness.vllm.sources.m]\nendpont='http://a'", "Did you mean `endpoint`?"),
        ("[harness.vllm]\ndefault_source='m'", "'m' is no source; known are huggingface"),
        (
            "[[default_models]]\nmodel_id='a'\n[[default_models]]\nmodel_id='a'",
            "default model 'a' is there twice",
        ),
        ("[[default_models]]\nkv_cache_mb=1", "lacks the key `model_id`"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OperatorError) as caught:
        read(text, tmp_path)
    assert message in caught.value.message
    assert "neuron.toml" in caught.value.message


def test_the_example_is_valid_and_says_the_defaults() -> None:
    assert read_config(Config, ROOT / "neuron.example.toml") == Config()
