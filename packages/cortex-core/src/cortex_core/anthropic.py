# SPDX-License-Identifier: GPL-3.0-or-later
"""How errors are told in Anthropic's API. Pure."""

import msgspec

from cortex_core import errors
from cortex_core.errors import CortexError

_ENCODE = msgspec.json.Encoder()

# Anthropic's name for each status; 503 becomes its 529. https://docs.anthropic.com/en/api/errors
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
OVERLOADED = 529
# How paths begin that only clients of this API ask for.
PATHS = ("/v1/messages",)
_TOO_LONG = "prompt is too long"


def write_error(error: CortexError, request_id: str) -> bytes:
    """The error as Anthropic's envelope; the code rides along as `error.code`."""
    kind = kind_of(error.status)
    message = message_of(error.code, error.message)
    body = {**error.facts, "type": kind, "message": message, "code": errors.code_of(error)}
    return _ENCODE.encode({"type": "error", "error": body, "request_id": request_id})


def message_of(code: object, message: str) -> str:
    """An error's sentence for Anthropic's clients, which know by its first words that they must shorten a conversation."""
    is_length = code == errors.ContextLengthExceededError.code
    if not is_length or message.lower().startswith(_TOO_LONG):
        return message
    return f"{_TOO_LONG}: {message}"


def kind_of(status: int) -> str:
    """Anthropic's `error.type` for an HTTP status of OpenAI's dialect."""
    other = "invalid_request_error" if status < 500 else "api_error"
    return _KINDS.get(status, other)


def status_of(status: int) -> int:
    """Anthropic's HTTP status for one of OpenAI's dialect."""
    return OVERLOADED if status == 503 else status
