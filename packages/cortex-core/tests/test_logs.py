# SPDX-License-Identifier: GPL-3.0-or-later
"""Our logs and the libraries' come out alike."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from cortex_core import logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], level = before
    logging.root.setLevel(level)
    structlog.reset_defaults()


def test_each_line_is_one_json_object_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(as_json=True)
    logs.get("cortex.test").info("node lost", node="a", misses=3)
    logging.getLogger("hypercorn.error").warning("from a library")
    ours, theirs = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["node"], ours["misses"], ours["level"]) == (
        "node lost",
        "a",
        3,
        "info",
    )
    assert ours["logger"] == "cortex.test"
    assert (theirs["event"], theirs["level"]) == ("from a library", "warning")


def test_a_traceback_is_part_of_the_object(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(as_json=True)
    try:
        raise ValueError("why")
    except ValueError:
        logs.get("x").exception("fault")
    line = json.loads(capsys.readouterr().err)
    assert line["exception"][0]["exc_value"] == "why"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_does_not_tell_what_variables_held(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.setup(as_json=as_json)
    prompt = "".join(["some", "body's", "secret"])
    try:
        raise ValueError(f"why, {len(prompt)}")
    except ValueError:
        logs.get("x").exception("fault")
    shown = capsys.readouterr().err
    assert "why, 16" in shown
    assert prompt not in shown


def test_the_level_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(level="warning", as_json=True)
    logs.get("x").info("not shown")
    assert capsys.readouterr().err == ""
