# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts that a whole response of OpenAI's Responses and a streamed one share.

Fields that OpenAI's published schema requires are there even where they are null: strict clients check. Pure.
"""

import re
from typing import Any

from cortex_core.openai import Usage
from cortex_gateway.dialects.chat_parts import Stop, is_nothing

Fields = dict[str, Any]

_NO_ID = re.compile(r"[^A-Za-z0-9_-]")
# Why a response that ended so is not complete.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# Of a response made here nothing is kept, and nobody runs it in the background.
_ALWAYS: Fields = {
    "background": False,
    "completed_at": None,
    "error": None,
    "frequency_penalty": 0,
    "max_tool_calls": None,
    "presence_penalty": 0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "top_logprobs": 0,
    "truncation": "disabled",
}


def plain_id(upstream_id: str) -> str:
    """The upstream's id of an answer as it goes into ours, so that logs on both sides can be laid together."""
    return _NO_ID.sub("", upstream_id.removeprefix("chatcmpl-"))


def write_shell(told: Fields, own_id: str, model: str, created: float | None) -> Fields:
    """A response that has just begun. `told`: the request's fields that the answer tells again."""
    return {
        "id": f"resp_{own_id}",
        "object": "response",
        "created_at": int(created or 0),
        "status": "in_progress",
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        **_ALWAYS,
        **told,
    }


def write_end(stop: Stop, output: list[Fields], usage: Usage) -> Fields:
    """What of a response is told at its regular end alone."""
    reason = _INCOMPLETE.get(stop.finish_reason)
    return {
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "output": output,
        "usage": write_usage(usage),
    }


def is_cut(stop: Stop) -> bool:
    """Whether the answer is not complete."""
    return stop.finish_reason in _INCOMPLETE


def write_usage(usage: Usage) -> Fields:
    """The counts; sub-counts that were not told are 0."""
    cached = usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens
    thought = usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached or 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": thought or 0},
        "total_tokens": usage.total_tokens or usage.prompt_tokens + usage.completion_tokens,
    }


def write_part(kind: str, text: str) -> Fields:
    """A content part: `output_text`, `refusal` or `reasoning_text`."""
    if kind == "output_text":
        return {"type": kind, "annotations": [], "logprobs": [], "text": text}
    return {"type": kind, "refusal" if kind == "refusal" else "text": text}


def write_item(own_id: str, index: int, part: Fields | None, part_kind: str, status: str) -> Fields:
    """An item that says or thinks something; `part` is None while it says nothing yet."""
    content = [] if part is None else [part]
    if part_kind == "reasoning_text":
        return {
            "id": f"rs_{own_id}_{index}",
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": content,
            "encrypted_content": None,
        }
    return {
        "id": f"msg_{own_id}_{index}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def write_call(own_id: str, index: int, call_id: str, name: str, given: str, status: str) -> Fields:
    """An item that calls a function; `given` are its arguments so far."""
    return {
        "id": f"fc_{own_id}_{index}",
        "type": "function_call",
        "status": status,
        "arguments": given,
        "call_id": call_id,
        "name": name,
    }


def call_id(upstream_id: str | None, own_id: str, number: int) -> str:
    """A call's id: the upstream's, since some templates want it back."""
    return upstream_id or f"call_{own_id}_{number}"


def whole_arguments(given: str) -> str:
    """A call's arguments; some servers say nothing, or `null`, for none, which clients cannot read as an object."""
    return "{}" if is_nothing(given) else given
