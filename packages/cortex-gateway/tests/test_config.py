# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator may write, and what is said of what they may not."""

from pathlib import Path

import msgspec
import pytest

from cortex_core.config import read_config
from cortex_core.errors import OperatorError
from cortex_gateway.config import (
    Config,
    GatewaySettings,
    LoadingSettings,
    NeuronSettings,
    PollSettings,
)

ROOT = Path(__file__).parents[3]


def read(tmp_path: Path, text: str, **environ: str) -> Config:
    path = tmp_path / "cortex.toml"
    path.write_text(text)
    return read_config(Config, path, prefix="CORTEX_", environ=environ)


def test_an_empty_file_is_a_gateway_with_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert config.gateway.listen == "0.0.0.0:31313"
    assert config.gateway.metrics_listen == "0.0.0.0:31314"
    assert (config.gateway.policy, config.gateway.max_body_mb) == ("least_busy", 64)
    assert config.gateway == read(tmp_path, "[gateway]\nworkers = 1\n").gateway
    assert (config.gateway.idle_timeout_s, config.gateway.drain_s) == (300, 60)
    assert config.loading.load_wait_s == 600
    assert (config.poll.interval_s, config.poll.timeout_s, config.poll.misses) == (5, 5, 3)
    assert (config.neurons, config.models_config, config.default_model) == ([], "models.toml", None)


def test_the_environment_overrides(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "[gateway]\nlisten = '127.0.0.1:1'\n",
        CORTEX_GATEWAY__LISTEN="127.0.0.1:2",
        CORTEX_POLL__MISSES="7",
        CORTEX_NEURONS='[{name = "a", endpoint = "http://a:13131"}]',
    )
    assert (config.gateway.listen, config.poll.misses) == ("127.0.0.1:2", 7)
    assert config.neurons == [NeuronSettings(name="a", endpoint="http://a:13131")]


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:31313", "localhost:0", "[::1]:31313", "gw-1.lan:65535", "unix:/run/cortex.sock"],
)
def test_addresses_that_can_be_listened_on(tmp_path: Path, address: str) -> None:
    assert read(tmp_path, f"[gateway]\nlisten = '{address}'\n").gateway.listen == address


def test_both_ports_may_be_whichever_is_free(tmp_path: Path) -> None:
    text = "[gateway]\nlisten = 'a:0'\nmetrics_listen = 'a:0'\n"
    assert read(tmp_path, text).gateway.listen == "a:0"


@pytest.mark.parametrize("path", ["", "/", "/behind/a/proxy", "/v10"])
def test_a_neuron_may_be_behind_a_path(tmp_path: Path, path: str) -> None:
    text = f"[[neurons]]\nname = 'a'\nendpoint = 'http://a:1{path}'\n"
    assert read(tmp_path, text).neurons[0].endpoint == f"http://a:1{path}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gateway]\nlisten = 'here'\n", "line 1: `gateway`: `listen` is 'here', which is not host:port"),
        ("[gateway]\nmetrics_listen = 'a:99999'\n", "`metrics_listen` is 'a:99999'"),
        ("[gateway]\nlisten = ':31313'\n", "`listen` is ':31313'"),
        ("[gateway]\nlisten = 'http://a:1'\n", "`listen` is 'http://a:1'"),
        ("[gateway]\nlisten = 'a:1'\nmetrics_listen = 'a:1'\n", "`metrics_listen` is 'a:1', as `listen` is"),
        ("[gateway]\nlisten = '0.0.0.0:31314'\n", "`metrics_listen` is '0.0.0.0:31314', as `listen` is"),
        ("[gateway]\nlisten = 'unix:/s'\nmetrics_listen = 'unix:/s'\n", "`metrics_listen` is 'unix:/s', as"),
        ("[[neurons]]\nname = 'a'\nendpoint = 'http://a:1/v1'\n", "`endpoint` is 'http://a:1/v1', and a neuron has no /v1"),
        ("[[neurons]]\nname = 'a'\nendpoint = 'http://a:1/x/v1/'\n", "Leave it out, or say `kind` = 'openai'"),
        ("[gateway]\npolicy = 'fastest'\n", "`policy` is 'fastest', which is none of least_busy, round_robin, session_affinity"),
        ("[gateway]\nworkers = 4\n", "line 1: `gateway`: `workers` is 4, and can only be 1: two processes would each load"),
        ("[gateway]\nworkers = 0\n", "`workers` is 0, and can only be 1"),
        ("[gateway]\nmax_body_mb = 0\n", "line 2: `gateway.max_body_mb`: Expected `int` >= 1"),
        ("[gateway]\ndrain_s = 'soon'\n", "line 2: `gateway.drain_s`"),
        ("default_model = 'a-*'\n", "`default_model` is 'a-*', which names no model"),
        ("default_model = ''\n", "`default_model` is ''"),
        ("[poll]\ninterval_s = 0\n", "line 2: `poll.interval_s`: Expected `float` > 0"),
        ("[poll]\nmisses = 0\n", "line 2: `poll.misses`"),
        ("[loading]\nload_wait = 1\n", "line 2: unknown key `loading.load_wait`. Did you mean `load_wait_s`?"),
        ("[[neurons]]\nname = 'a'\n", "line 1: `neurons[0]` lacks the key `endpoint`"),
        ("[[neurons]]\nname = 'a'\nendpoint = 'nonsense'\n", "`endpoint` is 'nonsense', which is not a URL"),
        ("[[neurons]]\nname = 'a'\nendpoint = 'ftp://a'\n", "`endpoint` is 'ftp://a'"),
        ("[[neurons]]\nname = 'a b'\nendpoint = 'http://a'\n", "`name` is 'a b'"),
        ("[[neurons]]\nname = ''\nendpoint = 'http://a'\n", "`name` is ''"),
        ("[[neurons]]\nname = 'a'\nendpoint = 'http://a'\nkind = 'openapi'\n", "line 4: `neurons[0].kind`: Invalid enum value 'openapi', which is none of neuron, openai"),
        ("[[neurons]]\nname = 'a'\nendpoint = 'http://a'\napi_key = 'k'\n", "`api_key` is for the kind 'openai'"),
        ("[[neurons]]\nname = 'a'\nendpoint = 'http://a'\nkind = 'openai'\napi_key = 'k'\nsecret = 'k'\n", "two words for one thing"),
        ("[[neurons]]\nname = 'a'\nendpoint = 'http://a'\nkind = 'openai'\napi_key = 'a b'\n", "`api_key` is empty, or has spaces"),
        ("[eviction]\ndefrag_after_cycles = -1\n", "line 2: `eviction.defrag_after_cycles`: Expected `int` >= 0"),
        (
            "[[neurons]]\nname = 'a'\nendpoint = 'http://a'\n[[neurons]]\nname = 'a'\nendpoint = 'http://b'\n",
            "two entries with the name 'a'",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OperatorError) as caught:
        read(tmp_path, text)
    assert message in caught.value.message
    assert str(tmp_path / "cortex.toml") in caught.value.message


@pytest.mark.parametrize(
    ("endpoint", "kind", "key"),
    [
        ("http://me:pass-word@a:1", "neuron", "secret"),
        ("https://me:pass/word@a", "openai", "api_key"),
        ("pass-word@a", "neuron", "secret"),
    ],
)
def test_a_password_in_an_endpoint_is_refused_and_never_repeated(
    tmp_path: Path, endpoint: str, kind: str, key: str
) -> None:
    with pytest.raises(OperatorError) as caught:
        read(tmp_path, f"[[neurons]]\nname = 'a'\nendpoint = '{endpoint}'\nkind = '{kind}'\n")
    assert f"What it is to be shown is the `{key}`" in caught.value.message
    assert "word" not in caught.value.message.replace("password", "")


@pytest.mark.parametrize(
    "kind", [Config, GatewaySettings, LoadingSettings, PollSettings, NeuronSettings]
)
def test_every_setting_says_what_it_is(kind: type[msgspec.Struct]) -> None:
    _, _, attributes = (kind.__doc__ or "").partition("Attributes:")
    for field in msgspec.structs.fields(kind):
        assert f"\n        {field.name}: " in attributes


def test_the_example_starts_from_an_installed_neuron_on_this_machine() -> None:
    config = read_config(Config, ROOT / "cortex.example.toml", environ={})
    assert [neuron.endpoint for neuron in config.neurons] == ["http://127.0.0.1:13131"]
    assert config.gateway == GatewaySettings()
