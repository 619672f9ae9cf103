# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import msgspec
import pytest

from cortex_gateway.foreign_errors import message_of, read_error, write_envelope

UNTOLD = "The upstream answered HTTP 502 and did not say why."
FLAW = {"type": "missing", "loc": ["body", "messages", 0], "msg": "Field required", "input": {}}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error":"why"}', {"message": "why"}),
        (b'{"message":"why","code":404}', {"message": "why", "code": 404}),
        (b'{"detail":"why"}', {"message": "why", "detail": "why"}),
        (b'{"detail":[1]}', {"message": UNTOLD, "detail": [1]}),
        (b'{"error":{"code":"c"}}', {"message": UNTOLD, "code": "c"}),
        (b'{"error":{"message":[]}}', {"message": UNTOLD}),
        (b'{"error":null}', {"message": UNTOLD}),
        (b'"why"', {"message": "why"}),
        (b"[]", {"message": UNTOLD}),
        (b"<html>", {"message": UNTOLD}),
        (b"", {"message": UNTOLD}),
    ],
)
def test_a_refusal_of_any_shape_is_told_in_openai_s_envelope(body: bytes, error: Any) -> None:
    assert read_error(502, body) == error
    told = msgspec.json.decode(write_envelope(502, body))
    assert told == {"error": {"type": "api_error", "code": None, "param": None, **error}}


@pytest.mark.parametrize(
    ("flaws", "message"),
    [
        ([FLAW], "body.messages.0: Field required"),
        ([FLAW, {"msg": "too long"}, {}], "body.messages.0: Field required; too long"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(flaws: Any, message: str) -> None:
    assert message_of({"detail": flaws}, "HTTP 422") == message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (403, "permission_error"),
        (429, "rate_limit_error"),
        (503, "api_error"),
    ],
)
def test_an_error_without_type_has_that_of_its_status(status: int, kind: str) -> None:
    assert msgspec.json.decode(write_envelope(status, b"{}"))["error"]["type"] == kind


def test_what_is_in_the_envelope_stays_byte_for_byte() -> None:
    body = b'{ "error": {"message": "why", "x": 1.0}}'
    assert write_envelope(400, body) is body
