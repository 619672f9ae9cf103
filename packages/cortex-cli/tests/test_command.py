# SPDX-License-Identifier: GPL-3.0-or-later
import sys

import pytest
from click.testing import CliRunner

from cortex_cli import command, installed
from cortex_core.errors import OperatorError


def run(*words: str) -> tuple[int, str]:
    answer = CliRunner().invoke(command.main, list(words))
    return answer.exit_code, answer.output


def test_help_lists_each_command() -> None:
    code, said = run("--help")
    assert code == 0
    assert all(name in said and line in said for name, line in command.COMMANDS.items())


def test_each_command_has_help_of_its_own() -> None:
    for name in command.COMMANDS:
        code, said = run(name, "--help")
        assert code == 0, said
        assert f"Usage: main {name}" in said


def test_version_is_the_package_s() -> None:
    assert run("--version") == (0, "cortex, version 0.1.0\n")


def test_an_unknown_command_is_wrong_usage() -> None:
    code, said = run("sevre")
    assert code == 2
    assert "No such command 'sevre'" in said


def test_help_imports_no_command() -> None:
    for name in command.COMMANDS:
        sys.modules.pop(f"cortex_cli.commands.{name}", None)
    run("--help")
    assert not [name for name in sys.modules if name.startswith("cortex_cli.commands.")]


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(OperatorError, match=r"pip install helexa-nowhere\."):
        installed.load("nowhere_to_be_found.serve", "main", "helexa-nowhere")


def test_a_fault_inside_a_package_is_not_taken_for_its_absence(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("import not_installed_either\n")  # type: ignore[operator]
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_either"):
        installed.load("half_there", "main", "helexa-half")


def test_presence_is_told_without_importing() -> None:
    assert installed.has("cortex_core")
    assert not installed.has("nowhere_to_be_found")
