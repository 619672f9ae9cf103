# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts that a whole Anthropic message and a streamed one share.

Fields that Anthropic's published schema requires are there even where they are null: strict clients check. Pure.
"""

import re
from typing import Any

from cortex_core.openai import Usage
from cortex_gateway.dialects.chat_parts import Stop

# No key signs what a model here thought. Not empty, since some clients drop a block without a signature;
# "cortex" in base64, since others decode it.
SIGNATURE = "Y29ydGV4"
# What Anthropic proposes for input that is no JSON object ("fine-grained tool streaming" in its documentation).
INVALID_JSON = "INVALID_JSON"

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_NO_ID = re.compile(r"[^A-Za-z0-9_-]")


def write_stop(stop: Stop, *, has_calls: bool, refused: bool) -> dict[str, Any]:
    """The `stop_…` fields. A forced call ends with `stop`, yet the client must see that it is to act."""
    reason = "refusal" if refused else _STOP_REASONS[stop.finish_reason]
    sequence = None
    if reason == "end_turn" and isinstance(stop.stop_reason, str):
        reason, sequence = "stop_sequence", stop.stop_reason
    elif reason == "end_turn" and has_calls:
        reason = "tool_use"
    details = {"type": "refusal", "category": None, "explanation": None}
    return {
        "stop_reason": reason,
        "stop_sequence": sequence,
        "stop_details": details if reason == "refusal" else None,
    }


def message_id(upstream_id: str) -> str:
    """Anthropic's id of an answer, from the upstream's, so that logs on both sides can be laid together."""
    return "msg_" + _NO_ID.sub("", upstream_id.removeprefix("chatcmpl-"))


def call_id(upstream_id: str | None, message: str, number: int) -> str:
    """A tool call's id: the upstream's where Anthropic's clients take it, since some templates want it back."""
    return _NO_ID.sub("_", upstream_id) if upstream_id else f"toolu_{message}_{number}"


def write_usage(usage: Usage | None) -> dict[str, Any]:
    """The counts that a message and its last delta share. `input_tokens` are those that no cache held."""
    usage = usage or Usage()
    cached = (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
    details = usage.completion_tokens_details
    thinking = details.reasoning_tokens if details else None
    return {
        "input_tokens": max(0, usage.prompt_tokens - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": None if thinking is None else {"thinking_tokens": thinking},
        "server_tool_use": None,
    }


def write_shell(message: str, model: str | None, usage: Usage | None) -> dict[str, Any]:
    """A message without content and end, as streams begin with it."""
    return {
        "id": message,
        "type": "message",
        "role": "assistant",
        "model": model or "",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {
            **write_usage(usage),
            "cache_creation": None,
            "inference_geo": None,
            "service_tier": "standard",
        },
    }


def write_call(own_id: str, name: str) -> dict[str, Any]:
    """A `tool_use` block whose input is not there yet."""
    return {
        "type": "tool_use",
        "id": own_id,
        "name": name,
        "input": {},
        "caller": {"type": "direct"},
    }
