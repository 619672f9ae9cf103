# SPDX-License-Identifier: GPL-3.0-or-later
"""What does a server mean that refuses in an envelope of its own, or in none? Told in OpenAI's. Pure."""

from typing import Any

import msgspec

from cortex_core.errors import (
    InternalError,
    ModelNotAllowedError,
    QueueFullError,
    RouteNotFoundError,
)

Fields = dict[str, Any]

_READ = msgspec.json.Decoder()
_ENCODE = msgspec.json.Encoder()
_UNTOLD = "The upstream answered {what} and did not say why."
_KINDS = {403: ModelNotAllowedError.kind, 429: QueueFullError.kind}


def write_envelope(status: int, body: bytes) -> bytes:
    """A refusal of that status in OpenAI's envelope: as it came where it is in one, else all that it says, in one."""
    answer = _read(body)
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return body
    error = read_error(status, body)
    other = InternalError.kind if status >= 500 else RouteNotFoundError.kind
    shell = {"type": _KINDS.get(status, other), "code": None, "param": None}
    return _ENCODE.encode({"error": {**shell, **error}})


def read_error(status: int, body: bytes) -> Fields:
    """What a refusal of that status says, its message in any case."""
    answer = _read(body)
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, str):
        error = {"message": error}
    elif not isinstance(error, dict):
        error = {}
    return {**error, "message": message_of(error, f"HTTP {status}")}


def message_of(error: Fields, what: str) -> str:
    """The sentence of an error; `what` is what there is to know of it where it has none."""
    told = error.get("message") or error.get("detail")
    if isinstance(told, list):  # FastAPI's, of a request that does not fit
        told = "; ".join(_flaw(one) for one in told if isinstance(one, dict) and one.get("msg"))
    return told if told and isinstance(told, str) else _UNTOLD.format(what=what)


def _flaw(flaw: Fields) -> str:
    place = flaw.get("loc")
    path = ".".join(str(step) for step in place) if isinstance(place, list) else ""
    return f"{path}: {flaw['msg']}" if path else str(flaw["msg"])


def _read(body: bytes) -> Any:
    try:
        return _READ.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
