# SPDX-License-Identifier: GPL-3.0-or-later
"""Every mistake in a config file or variable is named, with its line where it can be told."""

from pathlib import Path
from typing import Literal

import msgspec
import pytest
import structlog

from cortex_core.config import read_config
from cortex_core.errors import OperatorError


class Gateway(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listen: str = "0.0.0.0:31313"
    workers: int = 1
    mode: Literal["slow", "fast"] = "slow"


class Neuron(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    endpoint: str = ""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gateway: Gateway = Gateway()
    neurons: list[Neuron] = []
    aliases: dict[str, str] = {}
    sources: dict[str, Neuron] = {}
    port: int | None = None
    levels: list[Literal["low", "high"] | None] = []

    def __post_init__(self) -> None:
        if self.port == 0:
            raise ValueError("no")


FILE = """\
# a comment
[gateway]
listen = "127.0.0.1:1"

[[neurons]]
name = "a"

[[neurons]]
name = "b"
endpoint = "http://b"
"""


def read(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return read_config(Config, path, prefix="T_", environ=environ or {})


def refused(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(OperatorError) as caught:
        read(tmp_path, text, environ)
    return caught.value.message.replace(str(tmp_path), "")


def test_a_file_is_read_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    config = read(tmp_path, FILE)
    assert config.gateway == Gateway(listen="127.0.0.1:1")
    assert [neuron.name for neuron in config.neurons] == ["a", "b"]


def test_no_file_means_defaults() -> None:
    assert read_config(Config, None) == Config()


@pytest.mark.parametrize(
    ("environ", "field", "value"),
    [
        ({"T_PORT": "7"}, "port", 7),
        ({"T_GATEWAY__WORKERS": "3"}, "gateway", Gateway("127.0.0.1:1", 3)),
        ({"T_NEURONS": '[{name = "x"}]'}, "neurons", [Neuron("x")]),
        ({"T_SOURCES__S__NAME": "n"}, "sources", {"s": Neuron("n")}),
    ],
)
def test_the_environment_overrides_the_file(
    tmp_path: Path, environ: dict[str, str], field: str, value: object
) -> None:
    assert getattr(read(tmp_path, FILE, environ), field) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[gatway]\n",
            "/c.toml, line 1: unknown key `gatway`. Did you mean `gateway`?",
        ),
        (
            "[gateway]\nlisten = 'a'\nlistn = 'b'\n",
            "/c.toml, line 3: unknown key `gateway.listn`. Did you mean `listen`?",
        ),
        (
            FILE + "endpont = 'x'\n",
            "/c.toml, line 11: unknown key `neurons[1].endpont`. Did you mean `endpoint`?",
        ),
        (
            "zzzzzz = 1\n",
            "/c.toml, line 1: unknown key `zzzzzz`. Known here: gateway, neurons, aliases, sources, port, levels.",
        ),
        (
            "[sources.s]\nnam = 'x'\n",
            "/c.toml, line 2: unknown key `sources.s.nam`. Did you mean `name`?",
        ),
        (
            "[gateway]\nworkers = 'many'\n",
            "/c.toml, line 2: `gateway.workers`: Expected `int`, got `str`.",
        ),
        (
            "[[neurons]]\nname = 'a'\n[[neurons]]\nendpoint = 'x'\n",
            "/c.toml, line 3: `neurons[1]` lacks the key `name`.",
        ),
        (
            "[gateway]\nlisten = 'a'\nmode = 'FAST'\n",
            "/c.toml, line 3: `gateway.mode`: Invalid enum value 'FAST', which is none of slow, fast.",
        ),
        (
            "levels = ['high', 'mid']\n",
            "/c.toml, line 1: `levels[1]`: Invalid enum value 'mid', which is none of low, high.",
        ),
        ("port = 0\n", "/c.toml: no."),
        ("gateway = 3\n", "/c.toml, line 1: `gateway`: Expected `object`, got `int`."),
        (
            "[gateway\n",
            "/c.toml is not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 9)",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    assert refused(tmp_path, text) == message


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"T_GATEWAY__LISTN": "x"},
            "Environment variable T_GATEWAY__LISTN: unknown key `gateway.listn`. Did you mean `listen`?",
        ),
        (
            {"T_NEURONS": "[{"},
            "Environment variable T_NEURONS is not a TOML list or table: ",
        ),
    ],
)
def test_a_mistake_in_the_environment_is_named(
    tmp_path: Path, environ: dict[str, str], message: str
) -> None:
    assert refused(tmp_path, "", environ).startswith(message)


def test_a_variable_that_may_be_somebody_elses_is_only_told(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        assert read(tmp_path, "", {"T_SERVICE_HOST": "10.0.0.1"}) == Config()
    assert [(entry["log_level"], entry["variable"]) for entry in logs] == [
        ("warning", "T_SERVICE_HOST")
    ]


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"nothere.toml does not exist"):
        read_config(Config, tmp_path / "nothere.toml")
    with pytest.raises(OperatorError, match="cannot be read: Is a directory"):
        read_config(Config, tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(OperatorError, match="is not UTF-8"):
        read_config(Config, tmp_path / "b")
