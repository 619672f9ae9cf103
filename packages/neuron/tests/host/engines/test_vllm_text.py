# SPDX-License-Identifier: GPL-3.0-or-later
"""White space around a text is held back until more text shows that it belongs inside."""

import pytest

from neuron.host.engines.vllm_text import Text


@pytest.mark.parametrize(
    ("trim_start", "pieces", "out", "held"),
    [
        (False, ["a", " ", "b"], ["a", "", " b"], ""),
        (False, ["\n a \n"], ["\n a"], " \n"),
        (False, [" ", "\n"], ["", ""], " \n"),
        (True, ["\r\n", "\n  a", "\nb"], ["", "  a", "\nb"], ""),
        (True, ["a", "\n"], ["a", ""], "\n"),
    ],
)
def test_white_space_inside_is_kept(
    trim_start: bool, pieces: list[str], out: list[str], held: str
) -> None:
    text = Text(trim_start=trim_start)
    assert [text.feed(piece) for piece in pieces] == out
    assert text.flush() == held


def test_held_text_is_handed_out_once() -> None:
    text = Text()
    assert text.feed("a \n") == "a"
    assert text.flush() == " \n"
    assert text.flush() == ""
