# SPDX-License-Identifier: GPL-3.0-or-later
"""Anthropic's stream events as bytes. Pure.

What is the same in every delta of a block is made once, and only the text itself is encoded per delta.
"""

from typing import Any

import msgspec

from cortex_core.openai import Usage
from cortex_gateway.dialects.anthropic_parts import (
    SIGNATURE,
    write_shell,
    write_usage,
)

_ENCODE = msgspec.json.Encoder()

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
DELTA_END = b"}}\n\n"

# Kind of block: what its start holds, the type of its deltas, their field.
_TEXT = {"type": "text", "text": "", "citations": []}
_THINKING = {"type": "thinking", "thinking": "", "signature": ""}
STARTS: dict[str, dict[str, Any]] = {"text": _TEXT, "thinking": _THINKING}
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


def _write(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _ENCODE.encode({"type": name, **fields}))


def message_start(message: str, model: str | None, usage: Usage | None) -> bytes:
    """The first event of a message."""
    return _write("message_start", {"message": write_shell(message, model, usage)})


def block_start(index: int, block: dict[str, Any]) -> bytes:
    """A content block begins."""
    return _write("content_block_start", {"index": index, "content_block": block})


def delta_start(index: int, kind: str) -> bytes:
    """All of a block's delta but the JSON string of what is new, which `DELTA_END` follows."""
    name, field = _DELTAS[kind]
    whole = _write("content_block_delta", {"index": index, "delta": {"type": name, field: ""}})
    return whole[: -len(b'""' + DELTA_END)]


def signature(index: int) -> bytes:
    """The last delta of a block of thinking."""
    delta = {"type": "signature_delta", "signature": SIGNATURE}
    return _write("content_block_delta", {"index": index, "delta": delta})


def block_stop(index: int) -> bytes:
    """A content block is complete."""
    return _write("content_block_stop", {"index": index})


def message_delta(stop: dict[str, Any], usage: Usage) -> bytes:
    """Why the message ended, and what it cost."""
    fields = {"delta": {**stop, "container": None}, "usage": write_usage(usage)}
    return _write("message_delta", fields)


def error_event(envelope: bytes) -> bytes:
    """An error, after which nothing comes."""
    return b"event: error\ndata: " + envelope + b"\n\n"
