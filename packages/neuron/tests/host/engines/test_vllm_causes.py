# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine's processes log reaches whoever asks why a start failed."""

import logging
import logging.config
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuron.host.engines.vllm_causes import logging_config, read_causes
from neuron.host.engines.vllm_failures import Cause


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    logging.config.dictConfig(logging_config(tmp_path / "causes"))
    logger = logging.getLogger("vllm")
    yield logging.getLogger("vllm.v1.engine.core")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


def fail(log: logging.Logger, text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("EngineCore failed to start.")


def test_exceptions_are_gathered_in_their_order(tmp_path: Path, log: logging.Logger) -> None:
    fail(log, "first\nline")
    fail(log, "second")
    assert read_causes(tmp_path / "causes") == [
        Cause(kind="ValueError", text="first\nline"),
        Cause(kind="ValueError", text="second"),
    ]


def test_an_error_without_an_exception_is_no_cause(tmp_path: Path, log: logging.Logger) -> None:
    log.error("this happens")
    assert read_causes(tmp_path / "causes") == []


def test_a_line_that_was_cut_is_passed_over(tmp_path: Path, log: logging.Logger) -> None:
    fail(log, "whole")
    with (tmp_path / "causes").open("ab") as file:
        file.write(b'{"kind":"Val')
    assert read_causes(tmp_path / "causes") == [Cause(kind="ValueError", text="whole")]


def test_a_folder_that_is_gone_does_no_harm(tmp_path: Path, log: logging.Logger) -> None:
    logging.getLogger("vllm").handlers[0]._path = str(tmp_path / "gone" / "causes")  # type: ignore[attr-defined]  # what a sweep leaves
    fail(log, "nobody asks")
    assert read_causes(tmp_path / "gone" / "causes") == []
