# SPDX-License-Identifier: GPL-3.0-or-later
import json
from typing import Any

import pytest

from cortex_gateway.refused_fields import Wording

BODY = b'{"model":"m","max_tokens":9,"chat_template_kwargs":{},"x": 1.0}'
KWARGS = b"Unknown name: chat_template_kwargs"


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b'{"model":"m"}'])
def test_what_has_none_of_the_fields_stays_as_it_is(body: bytes) -> None:
    wording = Wording(body, {b'"m"': frozenset({"max_tokens"})})
    assert not wording.heed(KWARGS)
    assert (wording.body, wording.refused, wording.left_out) == (body, frozenset(), [])


@pytest.mark.parametrize(
    ("told", "fields", "left_out"),
    [
        (KWARGS, {"model": "m", "max_tokens": 9, "x": 1.0}, ["chat_template_kwargs"]),
        (
            b"Use 'max_completion_tokens' instead of 'max_tokens'",
            {"model": "m", "chat_template_kwargs": {}, "x": 1.0, "max_completion_tokens": 9},
            [],
        ),
    ],
)
def test_what_is_refused_is_left_out_or_called_otherwise(
    told: bytes, fields: Any, left_out: list[str]
) -> None:
    wording = Wording(BODY, {})
    assert wording.heed(told)
    assert (json.loads(wording.body), wording.left_out) == (fields, left_out)
    assert not wording.heed(told)
    again = Wording(BODY, {wording.model: wording.refused})
    assert json.loads(again.body) == fields
    assert (
        Wording(BODY.replace(b'"m"', b'"n"'), {wording.model: wording.refused}).body != again.body
    )


def test_a_new_name_that_is_there_already_keeps_its_value() -> None:
    wording = Wording(b'{"max_tokens":9,"max_completion_tokens":8}', {})
    assert wording.heed(b"max_completion_tokens")
    assert json.loads(wording.body) == {"max_completion_tokens": 8}
