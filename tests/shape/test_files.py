# SPDX-License-Identifier: GPL-3.0-or-later
"""What every source file and every package has."""

import ast
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tree
from packaging.requirements import Requirement
from packaging.version import Version
from tree import Module

SPDX = "# SPDX-License-Identifier: GPL-3.0-or-later"
DISTS = sorted(path.parent.name for path in tree.PACKAGES.glob("*/pyproject.toml"))
BARE = set(DISTS)
HEADING = re.compile(r"^## \[?(\d+\.\d+\.\d+)\]? - (\d{4}-\d{2}-\d{2})$", re.MULTILINE)


def unmarked(modules: list[Module]) -> list[str]:
    """Each file without its licence line (the second one, in a script)."""
    return [str(module) for module in modules if SPDX not in module.text.splitlines()[:2]]


def project(dist: str) -> dict[str, Any]:
    """The `[project]` table of a package."""
    read = tomllib.loads((tree.PACKAGES / dist / "pyproject.toml").read_text())["project"]
    return dict(read)


def requirements(table: dict[str, Any]) -> list[Requirement]:
    """What a package requires, its extras included."""
    extras = table.get("optional-dependencies", {}).values()
    return [Requirement(line) for lines in (table["dependencies"], *extras) for line in lines]


def wrong_siblings(required: list[Requirement], versions: dict[str, str]) -> list[str]:
    """Each sibling required under a bare name, without an upper bound, or in another version than the tree's."""
    found = []
    for requirement in required:
        if requirement.name in BARE:
            found.append(f"{requirement}: on the public index that name belongs to strangers")
        elif requirement.name in versions:
            if "<" not in str(requirement.specifier):
                found.append(f"{requirement}: without an upper bound it admits a breaking version")
            if Version(versions[requirement.name]) not in requirement.specifier:
                found.append(
                    f"{requirement}: does not admit the tree's {versions[requirement.name]}"
                )
    return found


def test_each_source_file_begins_with_its_licence() -> None:
    assert unmarked([*tree.sources(), *tree.scripts()]) == [], f"the first line is {SPDX}"


def test_each_module_says_what_it_is_for() -> None:
    silent = [str(module) for module in tree.sources() if not module.docstring]
    assert silent == [], "a module's docstring tells which question it answers"


@pytest.mark.parametrize("dist", DISTS)
def test_each_package_is_complete(dist: str) -> None:
    folder = tree.PACKAGES / dist
    assert (folder / "LICENSE").read_bytes() == (tree.ROOT / "LICENSE").read_bytes(), (
        "archives need their own copy"
    )
    assert list(folder.glob("src/*/py.typed")), "without py.typed type checkers ignore the package"
    assert (folder / "README.md").read_text().strip(), "the package's page is its README"
    assert any(folder.glob("tests/**/test_*.py")), "each package has tests of its own"


@pytest.mark.parametrize("dist", DISTS)
def test_the_newest_change_is_of_this_version(dist: str) -> None:
    newest = HEADING.search((tree.PACKAGES / dist / "CHANGELOG.md").read_text())
    assert newest, "a heading such as `## 0.1.0 - 2026-11-21`"
    assert newest[1] == project(dist)["version"], "operators read there what changed"


@pytest.mark.parametrize("dist", DISTS)
def test_the_installed_version_is_the_tree_s(dist: str) -> None:
    assert metadata.version(f"helexa-{dist}") == project(dist)["version"]
    assert project(dist)["name"] == f"helexa-{dist}", (
        "the bare names belong to strangers on the public index"
    )


@pytest.mark.parametrize("dist", DISTS)
def test_siblings_are_required_under_our_own_names(dist: str) -> None:
    versions = {project(other)["name"]: project(other)["version"] for other in DISTS}
    assert wrong_siblings(requirements(project(dist)), versions) == []


def test_an_old_python_can_read_the_script_that_refuses_it() -> None:
    text = (tree.ROOT / "tools/nox").read_text()
    ast.parse(text, feature_version=(3, 7))
    assert "from __future__" not in text


def test_the_rules_can_fail() -> None:
    module = tree.parse("a", Path("a.py"), "x = 1\n")
    assert unmarked([module]) == ["a"]
    versions = {"helexa-neuron": "0.2.0"}
    for line, fault in {
        "neuron>=0.1,<0.2": "belongs to strangers",
        "helexa-neuron>=0.2": "without an upper bound",
        "helexa-neuron>=0.1,<0.2": "does not admit",
    }.items():
        (found,) = wrong_siblings([Requirement(line)], versions)
        assert fault in found
