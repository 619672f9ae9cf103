# SPDX-License-Identifier: GPL-3.0-or-later
"""The narrow look at requests, and the renaming that leaves the rest alone."""

import json
from typing import Any

import msgspec
import pytest

from cortex_core import openai
from cortex_core.errors import (
    ClientError,
    InvalidRequestBodyError,
    MalformedJsonError,
    MissingModelFieldError,
    ShuttingDownError,
)


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        (b"", MalformedJsonError, None),
        (b"{", MalformedJsonError, None),
        (b'{"model": "\xff"}', MalformedJsonError, None),
        (
            b'{"model": "m", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            MalformedJsonError,
            None,
        ),
        (b"[]", InvalidRequestBodyError, None),
        (b'"text"', InvalidRequestBodyError, None),
        (b'{"model": 3}', InvalidRequestBodyError, "model"),
        (b'{"model": "m", "stream": "yes"}', InvalidRequestBodyError, "stream"),
        (
            b'{"model": "m", "stream_options": {"include_usage": 1}}',
            InvalidRequestBodyError,
            "stream_options.include_usage",
        ),
        (b"{}", MissingModelFieldError, "model"),
        (b'{"model": null}', MissingModelFieldError, "model"),
        (b'{"model": ""}', MissingModelFieldError, "model"),
    ],
)
def test_a_body_that_does_not_fit_says_what_is_wrong(
    body: bytes, kind: type[ClientError], param: str | None
) -> None:
    with pytest.raises(kind) as caught:
        openai.read_asked(body)
    assert type(caught.value) is kind
    assert caught.value.param == param


def test_a_body_is_read_as_what_is_wanted_however_deep_it_is() -> None:
    decoder = msgspec.json.Decoder(dict[str, Any])
    assert openai.read_body(b'{"a":[1]}', decoder) == {"a": [1]}
    for body in (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", b"{", b'{"a":"\xff"}'):
        with pytest.raises(MalformedJsonError):
            openai.read_body(body, decoder)
    with pytest.raises(InvalidRequestBodyError):
        openai.read_body(b"[]", decoder)


def test_unknown_fields_are_not_looked_at() -> None:
    asked = openai.read_asked(b'{"model": "m", "messages": 3, "new": {"a": []}, "stream": null}')
    assert (asked.model, asked.stream, asked.wants_usage_chunk) == ("m", None, False)


def test_the_wish_for_usage_is_seen() -> None:
    body = b'{"model": "m", "stream": true, "stream_options": {"include_usage": true}}'
    assert openai.read_asked(body).wants_usage_chunk


def test_renaming_keeps_every_other_value_byte_for_byte() -> None:
    body = b'{"seed":12345678901234567890,"t":1.0,"s":"\\u00e4","model":"a","x":{"b": [1, 2]}}'
    renamed = openai.rename_model(body, 'new/"id"')
    assert renamed == (
        b'{"seed":12345678901234567890,"t":1.0,"s":"\\u00e4","model":"new/\\"id\\"","x":{"b": [1, 2]}}'
    )


def test_an_error_in_a_stream_is_an_event_and_then_done() -> None:
    events = openai.write_error_events(ShuttingDownError(daemon="gateway"))
    first, second, rest = events.split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: "))["error"]["code"] == "shutting_down"
    assert (second, rest) == (b"data: [DONE]", b"")
