# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors in Anthropic's envelope."""

import json

import pytest

from cortex_core import anthropic, errors
from cortex_core.errors import CortexError


def test_anthropics_envelope_has_its_own_types_and_the_request_id() -> None:
    error = errors.ModelNotFoundError(model="m", param="model")
    body = json.loads(anthropic.write_error(error, "req_1"))
    assert (body["type"], body["request_id"]) == ("error", "req_1")
    assert body["error"]["type"] == "not_found_error"
    assert body["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.ShuttingDownError(daemon="gateway"), 529, "overloaded_error"),
        (errors.QueueFullError(model="m", waiting=1), 429, "rate_limit_error"),
        (errors.InvalidApiKeyError(), 401, "authentication_error"),
        (errors.RequestTooLargeError(limit_mb=1), 413, "request_too_large"),
        (errors.MalformedJsonError(reason="r"), 400, "invalid_request_error"),
        (errors.EngineDiedError(model="m", reason="r"), 502, "api_error"),
        (errors.UpstreamTimeoutError(upstream="u", idle_s=1), 504, "timeout_error"),
    ],
)
def test_anthropics_status_and_type(error: CortexError, status: int, kind: str) -> None:
    assert anthropic.status_of(error.status) == status
    assert json.loads(anthropic.write_error(error, "r"))["error"]["type"] == kind


def test_by_its_first_words_a_client_knows_that_it_must_shorten_the_conversation() -> None:
    for reason in ("9 tokens, the model takes 8", "Prompt is too long for this model"):
        error = errors.ContextLengthExceededError(reason=reason)
        told = json.loads(anthropic.write_error(error, "r"))["error"]["message"]
        assert told.lower().startswith("prompt is too long")
        assert told.endswith(reason)
    assert anthropic.message_of("queue_full", "full") == "full"
