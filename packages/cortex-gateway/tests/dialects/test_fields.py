# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from cortex_core.errors import InvalidRequestBodyError
from cortex_gateway.dialects.fields import (
    AND_MORE,
    MAX_DROPPED_NAMES,
    Dropped,
    optional,
    require,
)


def test_what_is_dropped_is_named_once_and_in_order() -> None:
    dropped = Dropped()
    dropped.note_rest({"a": 1, "c": None, "b": False, "cache_control": {}}, ["a"], "tools")
    dropped.note("tools", "b")
    dropped.note("document")
    assert dropped.names == ["cache_control", "document", "tools.b"]


def test_a_client_cannot_write_into_the_header() -> None:
    dropped = Dropped()
    dropped.note_rest({"a\r\nset-cookie: x": 1, "ü": 2, "a,b": 3, "x" * 65: 4}, [])
    assert dropped.names == ["other"]


def test_a_client_cannot_fill_up_the_header() -> None:
    dropped = Dropped()
    for number in [*range(MAX_DROPPED_NAMES), 0]:
        dropped.note(f"field{number}")
    assert len(dropped.names) == MAX_DROPPED_NAMES
    assert AND_MORE not in dropped.names
    for number in range(1000):
        dropped.note(f"field{number}")
    assert len(dropped.names) == MAX_DROPPED_NAMES + 1
    assert dropped.names[-1] == AND_MORE == "..."


def test_what_says_nothing_is_not_named() -> None:
    dropped = Dropped()
    dropped.note_rest({"a": None, "b": [], "caller": {"type": "direct"}}, [])
    assert dropped.names == []
    dropped.note_rest({"caller": {"type": "program", "caller_id": "c"}}, [])
    assert dropped.names == ["caller"]


def test_a_truth_value_is_no_integer() -> None:
    assert require(1, int, "at") == 1
    with pytest.raises(InvalidRequestBodyError, match="`at` must be an integer"):
        require(True, int, "at")


def test_null_is_the_same_as_nothing() -> None:
    assert optional(None, int, "at") is None
    with pytest.raises(InvalidRequestBodyError, match="`at` must be an integer"):
        optional("1", int, "at")
