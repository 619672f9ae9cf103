# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and functions stay small enough to read at once."""

import ast
from pathlib import Path

import tree
from tree import Module

LONGEST_FILE = 500
MEDIAN_FUNCTION = 8
LONG_FUNCTION = 45
LONG_SHARE = 0.05
# A file that may be longer, and why.
LONGER: dict[str, str] = {}


def too_long(modules: list[Module]) -> list[str]:
    """Each file of more than LONGEST_FILE lines."""
    return [
        f"{module} has {lines} lines"
        for module in modules
        if (lines := module.text.count("\n")) > LONGEST_FILE and str(module) not in LONGER
    ]


def lengths(modules: list[Module]) -> list[tuple[int, str]]:
    """Lines of each function from its `def` to its end, sorted."""
    return sorted(
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{module}:{node.lineno} {node.name}")
        for module in modules
        for node in tree.functions(module.tree)
    )


def test_no_file_is_longer_than_can_be_kept_in_mind() -> None:
    assert too_long([*tree.sources(), *tree.scripts()]) == [], "split it where its subjects part"


def test_half_of_all_functions_have_eight_lines_or_less() -> None:
    for src in sorted(tree.PACKAGES.glob("*/src/*/")):
        sizes = lengths([module for module in tree.sources() if module.package == src.name])
        if sizes:
            assert sizes[len(sizes) // 2][0] <= MEDIAN_FUNCTION, (
                f"{src.name}: say more in fewer words, or split"
            )


def test_nineteen_of_twenty_functions_are_short() -> None:
    sizes = lengths(tree.sources())
    long = [where for size, where in sizes if size >= LONG_FUNCTION]
    assert len(long) <= LONG_SHARE * len(sizes), f"the long ones: {long}"


def test_the_rules_can_fail() -> None:
    module = tree.parse("a", Path("a.py"), "def f():\n    return 1\n" + "\n" * LONGEST_FILE)
    assert too_long([module]) == ["a has 502 lines"]
    assert lengths([module]) == [(2, "a:1 f")]
    assert isinstance(module.tree, ast.Module)
