# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs are constant phrases with fields whose names are listed, so that one thing has one name."""

import ast
from pathlib import Path

import tree
from tree import Module

from cortex_core.logs import FIELDS

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
STRUCTLOG_S = {"exc_info"}


def faults(modules: list[Module]) -> list[str]:
    """Each log call with an unlisted field, or an event that is not a constant."""
    return [
        fault
        for module in modules
        for node in ast.walk(module.tree)
        for fault in _faults(module, node)
    ]


def _faults(module: Module, node: ast.AST) -> list[str]:
    if not (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
    ):
        return []
    if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "log"):
        return []
    where = f"{module}:{node.lineno}"
    names = {word.arg for word in node.keywords if word.arg} - STRUCTLOG_S
    found = [
        f"{where} field {name} is not in cortex_core.logs.FIELDS" for name in sorted(names - FIELDS)
    ]
    if len(node.args) != 1 or not isinstance(node.args[0], ast.Constant):
        found.append(f"{where} the event is not a constant phrase; facts are fields")
    return found


def test_log_lines_keep_to_the_list() -> None:
    assert faults(tree.sources()) == [], "who searches the logs must know what a thing is called"


def test_the_rule_can_fail() -> None:
    source = 'log.info("loaded", modle="a")\nlog.info(f"loaded {a}")\n'
    assert faults([tree.parse("a", Path("a.py"), source)]) == [
        "a:1 field modle is not in cortex_core.logs.FIELDS",
        "a:2 the event is not a constant phrase; facts are fields",
    ]
