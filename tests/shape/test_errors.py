# SPDX-License-Identifier: GPL-3.0-or-later
"""Each error is in the tree that its module opens with, and is raised with the facts that its sentence needs."""

import ast
import re
import string
from pathlib import Path

import tree
from tree import Module

from cortex_core import errors
from cortex_core.errors import CortexError

OWN = {"param", "retry_after_s"}
REFERENCE = tree.ROOT / "docs/reference/errors.md"


def classes() -> dict[str, type[CortexError]]:
    """Every error, by name."""
    found = {}
    waiting = [CortexError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting += kind.__subclasses__()
    return found


def lacking(modules: list[Module]) -> list[str]:
    """Each place that makes an error without a fact that its sentence names."""
    known = classes()
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            kind = known.get(_name(node.func)) if isinstance(node, ast.Call) else None
            if kind and isinstance(node, ast.Call) and not _is_open(node):
                given = {word.arg for word in node.keywords}
                where = f"{module}:{node.lineno} {kind.__name__}"
                found += [f"{where} lacks {fact}" for fact in sorted(_facts(kind) - given)]
    return found


def _name(node: ast.expr) -> str:
    return (
        node.id
        if isinstance(node, ast.Name)
        else node.attr
        if isinstance(node, ast.Attribute)
        else ""
    )


def _is_open(call: ast.Call) -> bool:
    """Facts that are passed on as `**facts` cannot be read off the source."""
    return any(word.arg is None for word in call.keywords)


def _facts(kind: type[CortexError]) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(kind.says) if field} - OWN


def test_the_tree_shows_each_error_with_its_code() -> None:
    drawn = errors.__doc__ or ""
    for name, kind in classes().items():
        line = next((line for line in drawn.splitlines() if re.search(rf"\b{name}\b", line)), "")
        assert line, f"{name} is not in the tree of errors.py, where one looks what to catch"
        if "code" in vars(kind) and re.search(r"\d{3} [a-z_]+$", line):
            assert line.endswith(f"{kind.status} {kind.code}"), line


def test_errors_live_in_one_module() -> None:
    elsewhere = [name for name, kind in classes().items() if kind.__module__ != errors.__name__]
    assert elsewhere == [], "one look at errors.py tells what can go wrong"


def test_each_code_is_in_the_reference() -> None:
    text = REFERENCE.read_text()
    missing = [kind.code for kind in classes().values() if f"`{kind.code}`" not in text]
    assert missing == [], "`tools/nox -s docs -- --write` writes docs/reference"


def test_errors_are_made_with_every_fact_they_tell() -> None:
    assert lacking(tree.sources()) == [], "without it the raise itself fails, with a KeyError"


def test_the_rules_can_fail() -> None:
    source = "raise errors.ModelLoadingError(model='a')\nraise ModelLoadingError(**facts)\n"
    assert lacking([tree.parse("a", Path("a.py"), source)]) == ["a:1 ModelLoadingError lacks node"]
