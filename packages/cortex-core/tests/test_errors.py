# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree of errors: codes and statuses as promised, both envelopes."""

import json
from collections.abc import Iterator

import pytest

from cortex_core import errors
from cortex_core.errors import CortexError

STATUS_OF = {
    "malformed_json": 400,
    "missing_model_field": 400,
    "invalid_request_body": 400,
    "context_length_exceeded": 400,
    "vision_unsupported": 400,
    "chained_conversation_not_supported": 400,
    "invalid_api_key": 401,
    "model_not_allowed": 403,
    "model_not_found": 404,
    "request_not_found": 404,
    "model_infeasible": 404,
    "route_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "spec_conflict": 409,
    "cannot_sleep": 409,
    "weights_in_use": 409,
    "request_too_large": 413,
    "unsupported_media_type": 415,
    "wrong_modality": 422,
    "websocket_not_supported": 426,
    "load_refused": 422,
    "queue_full": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "internal_error": 500,
    "load_failed": 502,
    "engine_died": 502,
    "upstream_connection_error": 502,
    "upstream_protocol_error": 502,
    "no_healthy_node": 503,
    "model_loading": 503,
    "model_recovering": 503,
    "wait_timeout": 503,
    "insufficient_vram": 503,
    "shutting_down": 503,
    "upstream_timeout": 504,
}
NEVER_RETRY = {"internal_error", "load_failed"}


class AnyFact(dict[str, object]):
    """Has every fact a sentence may ask for."""

    def __missing__(self, key: str) -> object:
        return 1.0 if key.endswith("_s") else key


def leaves(kind: type[CortexError] = CortexError) -> Iterator[type[CortexError]]:
    children = kind.__subclasses__()
    if not children:
        yield kind
    for child in children:
        yield from leaves(child)


WIRE = [kind for kind in leaves() if kind is not errors.OperatorError]


def test_the_codes_are_the_promised_ones() -> None:
    assert {kind.code: kind.status for kind in WIRE} == STATUS_OF


@pytest.mark.parametrize("kind", WIRE, ids=lambda kind: kind.__name__)
def test_what_may_pass_has_retry_after_and_what_is_permanent_has_none(
    kind: type[CortexError],
) -> None:
    may_pass = kind.status in (502, 503, 504) or kind.code in (
        "queue_full",
        "rate_limit_exceeded",
    )
    expected = may_pass and kind.code not in NEVER_RETRY
    assert (kind.default_retry_after_s is not None) == expected


@pytest.mark.parametrize("kind", WIRE, ids=lambda kind: kind.__name__)
def test_each_sentence_says_something_and_ends(kind: type[CortexError]) -> None:
    assert kind.__doc__
    sentence = kind.says.format_map(AnyFact())
    assert kind is errors.ContextLengthExceededError or sentence.count(" ") >= 3


def test_openais_envelope_holds_the_facts_inside_the_error() -> None:
    error = errors.RequestTooLargeError(limit_mb=64)
    assert json.loads(errors.write_openai(error)) == {
        "error": {
            "limit_mb": 64,
            "message": "The request body is larger than 64 MiB, the limit here (`max_body_mb`).",
            "type": "invalid_request_error",
            "code": "request_too_large",
            "param": None,
        }
    }


def test_a_refused_load_has_the_code_of_its_kind() -> None:
    error = errors.LoadRefusedError(
        model="m", load_kind="quant_not_found", reason="no q9", suggestion="Try q8."
    )
    assert json.loads(errors.write_openai(error))["error"]["code"] == "quant_not_found"
    assert error.message == "The model 'm' cannot be loaded: no q9. Try q8."


def test_braces_in_facts_stay_as_they_are() -> None:
    assert "{x}" in errors.MalformedJsonError(reason="{x}").message


def test_the_tree_in_the_docstring_names_every_class() -> None:
    assert errors.__doc__
    for kind in leaves():
        assert kind.__name__ in errors.__doc__, kind


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *STATUS_OF.items(),
        (503, 503),
        ("no_such_code", None),
        (200, None),
        (True, None),
        (None, None),
    ],
)
def test_a_code_has_one_status(code: object, status: int | None) -> None:
    assert errors.status_of(code) == status


def test_a_reason_that_ends_a_sentence_does_not_end_it_twice() -> None:
    error = errors.UpstreamConnectionError(upstream="http://a", reason="it was closed.")
    assert error.message.endswith("it was closed.")
    assert not error.message.endswith("..")
    assert error.facts["reason"] == "it was closed."
