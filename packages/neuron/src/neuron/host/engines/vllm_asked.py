# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client's request becomes before vLLM reads it. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from cortex_core.errors import InvalidRequestBodyError, MalformedJsonError

Fields = dict[str, Any]

_DECODE = msgspec.json.Decoder()
_YES = frozenset({"1", "true", "yes"})
_ANSWER_LIMITS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})
_IMAGE_PARTS = frozenset({"image", "image_url", "input_image"})


class Wish(NamedTuple):
    """What the client wants of the answer's form.

    Attributes:
        thinking: reasoning back in `content`, between its markers.
        usage_chunk: a last chunk with the usage (`stream_options.include_usage`).
        usage_comment: the usage as an SSE comment at the end, for the gateway.
    """

    thinking: bool = False
    usage_chunk: bool = False
    usage_comment: bool = False


def read_fields(body: bytes) -> Fields:
    """The body's fields.

    Raises:
        MalformedJsonError: not JSON. The client's fault, as the other is.
        InvalidRequestBodyError: JSON, but no object.
    """
    try:
        fields = _DECODE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedJsonError(reason=str(error)) from None
    if not isinstance(fields, dict):
        raise InvalidRequestBodyError(reason=f"expected an object, found {type(fields).__name__}")
    return fields


def is_yes(value: bytes | None) -> bool:
    """Whether a header says yes: 1, true or yes."""
    return value is not None and value.decode("latin-1").strip().lower() in _YES


def plan_request(
    fields: Fields, model_id: str, *, context_tokens: int, thinking: bool, usage_comment: bool
) -> tuple[Fields, Wish]:
    """The fields for vLLM, and what the answer must be turned into.

    The host serves one model, and whoever routed the request here knew it by some name: it is asked for by its
    own. A limit beyond the context is lowered to it: agents ask for 32,000 tokens whatever the model, vLLM
    refuses that, and shortens by itself what is within.
    """
    asked = {**fields, "model": model_id}
    for name in _ANSWER_LIMITS & fields.keys():
        if isinstance(limit := fields[name], int) and limit > context_tokens:
            asked[name] = context_tokens
    options = fields.get("stream_options")
    usage_chunk = isinstance(options, Mapping) and options.get("include_usage") is True
    if usage_comment and fields.get("stream") and (options is None or isinstance(options, Mapping)):
        asked["stream_options"] = {**(options or {}), "include_usage": True}
    if isinstance(messages := fields.get("messages"), list):
        asked["messages"] = [_rename_reasoning(message) for message in messages]
    return asked, Wish(thinking, usage_chunk, usage_comment)


def _rename_reasoning(message: Any) -> Any:
    """Reasoning of earlier turns under the name that vLLM knows."""
    if not isinstance(message, dict) or "reasoning_content" not in message:
        return message
    renamed = dict(message)
    reasoning = renamed.pop("reasoning_content")
    if not renamed.get("reasoning"):
        renamed["reasoning"] = reasoning
    return renamed


def has_image(fields: Mapping[str, Any]) -> bool:
    """Whether a message, or an item of `input`, carries an image."""
    return any(part.get("type") in _IMAGE_PARTS for part in _parts(fields))


def _parts(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in ("messages", "input"):
        items = fields.get(name)
        for item in items if isinstance(items, list) else []:
            content = item.get("content") if isinstance(item, dict) else None
            for part in content if isinstance(content, list) else []:
                if isinstance(part, dict):
                    yield part
