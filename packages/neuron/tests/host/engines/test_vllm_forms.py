# SPDX-License-Identifier: GPL-3.0-or-later
"""The forms that answers are held to; what xgrammar makes of them is tested on the real engine."""

from neuron.host.engines.vllm_forms import (
    MAX_WHITE_SPACE,
    allow_reasoning,
    bound_white_space,
    write_calls,
)
from neuron.host.engines.vllm_reasoning import Pair, Start

PAIR = Pair("<think>", "</think>", 1, 2)
FORM = {"type": "const_string", "value": "yes"}


OPENER = {"type": "token", "token": 1}
CLOSER = {"type": "token", "token": 2}


def test_a_block_of_reasoning_may_come_first() -> None:
    first, last = allow_reasoning(PAIR, Start.FREE, FORM)["elements"]
    assert (first["type"], last) == ("optional", FORM)
    block, gap = first["content"]["elements"]
    assert (block["begin"], block["end"]) == (OPENER, CLOSER)
    assert gap["type"] == "optional"


def test_reasoning_that_was_opened_must_end_first() -> None:
    rest, gap, last = allow_reasoning(PAIR, Start.OPEN, FORM)["elements"]
    assert (rest["begin"], rest["end"]) == ("", CLOSER)
    assert (gap["type"], last) == ("optional", FORM)


def test_reasoning_that_was_turned_off_is_no_way_round_a_form() -> None:
    assert allow_reasoning(PAIR, Start.CLOSED, FORM) is FORM


def test_json_has_only_so_much_white_space() -> None:
    schema = {"type": "json_schema", "style": "json"}  # what a schema says is not looked at
    form = {
        "type": "or",
        "elements": [
            {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": None},
            {"type": "tag", "content": {"type": "json_schema", "json_schema": True}},
            {"type": "json_schema", "json_schema": True, "max_whitespace_cnt": 2},
            {"type": "json_schema", "json_schema": True, "style": "qwen_xml"},
        ],
    }
    first, second, third, fourth = bound_white_space(form)["elements"]
    assert first["max_whitespace_cnt"] == MAX_WHITE_SPACE
    assert first["json_schema"] == {"type": "json_schema", "style": "json"}
    assert second["content"]["max_whitespace_cnt"] == MAX_WHITE_SPACE
    assert third["max_whitespace_cnt"] == 2
    assert "max_whitespace_cnt" not in fourth


def test_calls_are_a_token_a_name_a_token_and_arguments() -> None:
    several = write_calls({"f": {"type": "object"}, "g": None}, 7, 8, several=True)
    assert several["type"] == "plus"
    first, second = several["content"]["elements"]
    assert [part["type"] for part in first["elements"]] == [
        "token", "const_string", "token", "json_schema",
    ]  # fmt: skip
    assert second["elements"][3] == {
        "type": "json_schema",
        "json_schema": {"type": "object"},
        "max_whitespace_cnt": MAX_WHITE_SPACE,
    }
    assert write_calls({"f": None}, 7, 8, several=False)["type"] == "or"
