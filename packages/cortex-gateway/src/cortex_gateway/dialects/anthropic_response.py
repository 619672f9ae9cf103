# SPDX-License-Identifier: GPL-3.0-or-later
"""How a whole answer of OpenAI chat, or an error, is told in Anthropic's Messages API. Pure."""

from typing import Any

import msgspec

from cortex_core import anthropic, errors
from cortex_gateway.dialects.anthropic_parts import (
    INVALID_JSON,
    SIGNATURE,
    call_id,
    message_id,
    write_call,
    write_shell,
    write_stop,
)
from cortex_gateway.dialects.chat_parts import Said, is_nothing, read_answer
from cortex_gateway.dialects.openai_chat import OPENAI_CHAT
from cortex_gateway.foreign_errors import message_of, read_error

_ENCODE = msgspec.json.Encoder()
# What the client asks, and what its upstream is asked.
_PATH, _ASKED = "/v1/messages", OPENAI_CHAT.path
_READ_INPUT = msgspec.json.Decoder(dict[str, Any])


def write_message(body: bytes, upstream: str, request_id: str) -> bytes:
    """A whole answer of `upstream`, translated; it is called by the request where it has no id of its own.

    Raises:
        UpstreamProtocolError: it is none, or ended in a way that is no regular end.
    """
    answer = read_answer(body, upstream)
    said = answer.said
    own_id = message_id(answer.id or request_id)
    message = write_shell(own_id, answer.model, answer.cost)
    message["content"] = _write_content(said, own_id)
    message |= write_stop(
        answer.choices[0].stop, has_calls=bool(said.tool_calls), refused=bool(said.refusal)
    )
    return _ENCODE.encode(message)


def _write_content(said: Said, own_id: str) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if thought := said.reasoning_content or said.reasoning:
        blocks.append({"type": "thinking", "thinking": thought, "signature": SIGNATURE})
    if text := (said.content or "") + (said.refusal or ""):
        blocks.append({"type": "text", "text": text, "citations": []})
    for number, call in enumerate(said.tool_calls or ()):
        block = write_call(call_id(call.id, own_id, number), call.function.name or "")
        blocks.append({**block, "input": _read_input(call.function.text)})
    return blocks


def _read_input(arguments: str) -> msgspec.Raw | dict[str, Any]:
    """A call's arguments as an object, in the model's own spelling."""
    if is_nothing(arguments):
        return {}
    try:
        _READ_INPUT.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return {INVALID_JSON: arguments}
    return msgspec.Raw(arguments.encode())


def write_upstream_error(status: int, body: bytes, request_id: str) -> bytes:
    """An upstream's error in Anthropic's envelope. Its code and its facts stay, beside Anthropic's own type."""
    error = read_error(status, body)
    if error.get("code") == errors.WrongModalityError.code and error.get("path") == _ASKED:
        error |= {"message": error["message"].replace(_ASKED, _PATH), "path": _PATH}
    return _write_error(anthropic.kind_of(status), error, request_id)


def write_stream_error(error: dict[str, Any], request_id: str) -> bytes:
    """The error inside an upstream's stream, in Anthropic's envelope; of its status nothing is left but its code."""
    status = errors.status_of(error.get("code"))
    if status is not None:
        kind = anthropic.kind_of(status)
    else:
        known = ("invalid_request_error", "rate_limit_error", "permission_error")
        kind = error["type"] if error.get("type") in known else "api_error"
    error = {**error, "message": message_of(error, "an error in the stream")}
    return _write_error(kind, error, request_id)


def _write_error(kind: str, error: dict[str, Any], request_id: str) -> bytes:
    message = anthropic.message_of(error.get("code"), error["message"])
    told = {**error, "type": kind, "message": message}
    return _ENCODE.encode({"type": "error", "error": told, "request_id": request_id})
