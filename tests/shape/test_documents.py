# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents are true: what they link to, name and tell to type exists."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
import tree

from cortex_cli.command import main as cortex
from cortex_cli.trial.plan import Trial

PAGES = {path: text for path, text in tree.texts().items() if path.suffix == ".md"}
README = PAGES.get(tree.ROOT / "README.md", "")
MAP = PAGES.get(tree.ROOT / "ARCHITECTURE.md", "")
MAP_LINES = 120
README_LINES = 100
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]+)(#[^)]*)?\)")
# In backticks, with a slash or a suffix that a file of ours has.
PATH = re.compile(r"`([\w./*-]*(?:/[\w.*-]*|\.(?:md|py|toml|txt)))`")
FENCE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def dead_links(pages: dict[Path, str]) -> list[str]:
    """Each relative link that leads nowhere."""
    return [
        f"{path.relative_to(tree.ROOT)}: {link[1]}"
        for path, text in pages.items()
        for link in LINK.finditer(text)
        if not (path.parent / link[1]).exists()
    ]


def unknown_paths(text: str) -> list[str]:
    """Each path in backticks that is not in the tree; routes begin with a slash and are none."""
    names = {path.name for path in tree.files()}
    named = [path for path in PATH.findall(text) if not path.startswith("/")]
    return [
        path
        for path in named
        if not (any(tree.ROOT.glob(path.rstrip("/"))) if "/" in path else path in names)
    ]


def commands(text: str) -> Iterator[list[str]]:
    """What the `console` blocks tell to type, in words; lines ending in a backslash go on."""
    for block in FENCE.findall(text):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.startswith("$ "):
                yield shlex.split(line.removeprefix("$ "), comments=True)


def wrong_command(words: list[str]) -> str | None:
    """Why a command cannot be typed; None: it can."""
    program = words[0].rpartition("/")[2]
    if program == "nox":
        return _wrong_nox(words[1:])
    groups = {"cortex": cortex, "neuron": getattr(import_module("neuron.command"), "main", None)}
    group = groups.get(program)
    return _wrong_click(group, words[1:]) if group else None


def _wrong_nox(words: list[str]) -> str | None:
    cut = words.index("--") if "--" in words else len(words)
    asked = [word.partition("(")[0] for word in words[:cut] if not word.startswith("-")]
    unknown = set(asked) - sessions()
    if unknown:
        return f"the noxfile has no session {', '.join(sorted(unknown))}"
    return _wrong_click(cortex, ["up", *words[cut + 1 :]]) if asked == ["up"] else None


def _wrong_click(command: click.Command, words: list[str]) -> str | None:
    context = click.Context(command)
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        return _wrong_click(found, words[1:]) if found else f"there is no command {words[0]}"
    known = {option for parameter in command.get_params(context) for option in parameter.opts}
    unknown = [word for word in words if word.startswith("-") and word not in known]
    return f"{command.name} has no option {', '.join(unknown)}" if unknown else None


def sessions() -> set[str]:
    """The noxfile's sessions."""
    module = ast.parse((tree.ROOT / "noxfile.py").read_text())
    return {
        function.name
        for function in tree.functions(module)
        if any("nox.session" in ast.unparse(decorator) for decorator in function.decorator_list)
    }


def test_each_setting_has_its_meaning() -> None:
    page = PAGES[tree.ROOT / "docs/reference/config.md"]
    silent = [
        line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")
    ]
    assert silent == [], "its line under `Attributes:` is what an operator has to go by"


def test_links_lead_somewhere() -> None:
    assert dead_links(PAGES) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(tree.ROOT)))
def test_commands_can_be_typed(page: Path) -> None:
    wrong = {" ".join(words): wrong_command(words) for words in commands(PAGES[page])}
    assert {line: why for line, why in wrong.items() if why} == {}


def test_the_readme_s_requests_are_those_that_up_prints() -> None:
    for line in Trial().lines_to_try(".venv/bin/cortex"):
        assert line in README, "one learns them in one place and meets them in the other"


def test_the_readme_is_short() -> None:
    assert 0 < README.count("\n") <= README_LINES, "a screen and a half is what people read"


def test_the_map_is_short_and_true() -> None:
    assert 0 < MAP.count("\n") <= MAP_LINES, "a map that is read to its end"
    assert unknown_paths(MAP) == [], "the map names what is not there"


def test_the_map_names_each_package_s_folders() -> None:
    folders = {path.parent.name for path in tree.PACKAGES.glob("*/pyproject.toml")}
    assert {name for name in folders if f"packages/{name}" not in MAP} == set()


def test_the_rules_can_fail() -> None:
    page = "see [x](nowhere.md) and `packages/nowhere`, `/v1/models`\n\n```console\n$ cortex serve --confg a\n```\n"
    assert dead_links({tree.ROOT / "README.md": page}) == ["README.md: nowhere.md"]
    assert unknown_paths(page) == ["packages/nowhere"]
    assert [wrong_command(words) for words in commands(page)] == ["serve has no option --confg"]
    assert wrong_command(["tools/nox", "-s", "upp"]) == "the noxfile has no session upp"
    assert wrong_command(["tools/nox", "-s", "up", "--", "--nope"]) == "up has no option --nope"
    assert wrong_command(["cortex", "nope"]) == "there is no command nope"
