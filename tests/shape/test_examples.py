# SPDX-License-Identifier: GPL-3.0-or-later
"""The example files are what a person starts from: they load as they are, and show every key."""

import re
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tree

from cortex_core.config import read_config

EXAMPLES = {
    "cortex.example.toml": ("cortex_gateway.config", "Config"),
    "models.example.toml": ("cortex_core.catalogue", "Catalogue"),
    "neuron.example.toml": ("neuron.config", "Config"),
}


def struct(example: str) -> type[msgspec.Struct]:
    module, name = EXAMPLES[example]
    found: type[msgspec.Struct] = getattr(import_module(module), name)
    return found


def keys(kind: Any) -> set[str]:
    """Every key of a config, at any depth."""
    found = set()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            found |= {field.encode_name} | keys(field.type)
    for argument in typing.get_args(kind):
        found |= keys(argument)
    return found


def missing(text: str, kind: Any) -> list[str]:
    """Keys that the text names neither as a key nor as a table, commented out or not."""
    named = set(re.findall(r"^#? ?\[*([\w.]+)", text, re.MULTILINE))
    parts = {part for name in named for part in name.split(".")}
    return sorted(keys(kind) - parts)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_load_as_they_are(example: str) -> None:
    read_config(struct(example), tree.ROOT / example)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_show_every_key(example: str) -> None:
    text = (tree.ROOT / example).read_text()
    assert missing(text, struct(example)) == [], f"{example} doubles as the list of what can be set"


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_examples_comment_out_would_load_too(example: str, tmp_path: Path) -> None:
    text = (tree.ROOT / example).read_text()
    path = tmp_path / example.replace(".example", "")
    path.write_text(re.sub(r"^# ?(?=\[*[\w.\"]+\]*(?: = |\]$))", "", text, flags=re.MULTILINE))
    read_config(struct(example), path)


def test_the_rule_can_fail() -> None:
    class Inner(msgspec.Struct, frozen=True):
        depth: int = 0

    class Outer(msgspec.Struct):
        inner: Inner = Inner()
        port: int = 0

    assert missing("# port = 1\n", list[Outer]) == ["depth", "inner"]
    assert missing("port = 1\n[inner]\n# depth = 2\n", Outer | None) == []
