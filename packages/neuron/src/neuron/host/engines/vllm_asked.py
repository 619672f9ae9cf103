# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client's request becomes before vLLM reads it. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, NamedTuple

import msgspec

from cortex_core import openai
from cortex_core.errors import InvalidRequestBodyError

Fields = dict[str, Any]
# Names of an object's fields, and what is known so of the objects in each; None: they may be anything.
Known = Mapping[str, "Known | None"]

_DECODE: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_ENCODE = msgspec.json.Encoder()
_YES = frozenset({"1", "true", "yes"})
_ANSWER_LIMITS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})


# The names go into a header: a client must not be able to write its own there, nor fill it up.
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_DROPPED_NAMES = 32


class Wish(NamedTuple):
    """What the client wants of the answer's form.

    Attributes:
        thinking: reasoning back in `content`, between its markers.
        usage_chunk: a last chunk with the usage (`stream_options.include_usage`).
        usage_comment: the usage as an SSE comment at the end, for the gateway.
        told: what of the request the answer tells again; None: nothing but what vLLM does.
        dropped: names of what was left out of the request, for `x-cortex-dropped`.
    """

    thinking: bool = False
    usage_chunk: bool = False
    usage_comment: bool = False
    told: Fields | None = None
    dropped: tuple[str, ...] = ()


def read_fields(body: bytes) -> Fields:
    """The body's fields.

    Raises:
        MalformedJsonError: not JSON, or nested too deeply. The client's fault, as the other is.
        InvalidRequestBodyError: JSON, but no object.
    """
    fields = openai.read_body(body, _DECODE)
    if not isinstance(fields, dict):
        raise InvalidRequestBodyError(reason=f"expected an object, found {type(fields).__name__}")
    return fields


def name_unread(fields: Fields, known: Known, others: Iterable[str] = ()) -> tuple[str, ...]:
    """What is lost of a request, each name once, and no more of them than a header holds.

    Args:
        fields: the client's. What says nothing, null or an empty list, is not lost.
        known: names that something is made of.
        others: names of what is lost of these.
    """
    unread = sorted({write_name(*path) for path in _find_unread(fields, known)})
    return tuple(dict.fromkeys([*unread, *others]))[:MAX_DROPPED_NAMES]


def _find_unread(value: Any, known: Known) -> Iterator[tuple[str, ...]]:
    """The paths to unknown fields of an object, or of the objects in a list."""
    for fields in value if isinstance(value, list) else [value]:
        if not isinstance(fields, dict):
            continue
        for name in fields.keys() - known.keys():
            if fields[name] not in (None, []):
                yield (name,)
        for name, inner in known.items():
            if inner and name in fields:
                yield from ((name, *path) for path in _find_unread(fields[name], inner))


def write_name(*path: str) -> str:
    """A name that can stand in a header, whatever a client called it."""
    return ".".join(part if _SAFE.fullmatch(part) else "other" for part in path)


def is_yes(value: bytes | None) -> bool:
    """Whether a header says yes: 1, true or yes."""
    return value is not None and value.decode("latin-1").strip().lower() in _YES


def plan_request(
    fields: Fields,
    model_id: str,
    *,
    adapters: Set[str],
    context_tokens: int,
    thinking: bool,
    usage_comment: bool,
) -> tuple[Fields, Wish]:
    """The fields for vLLM, and what the answer must be turned into.

    The host serves one model and its adapters, and whoever routed the request here knew the model by some name:
    what names no adapter is asked for by the model's own. A limit beyond the context is lowered to it: agents ask
    for 32,000 tokens whatever the model, vLLM refuses that, and shortens by itself what is within.
    """
    named = fields.get("model")
    is_adapter = isinstance(named, str) and named in adapters
    asked = {**fields, "model": named if is_adapter else model_id}
    for name in _ANSWER_LIMITS & fields.keys():
        if isinstance(limit := fields[name], int) and limit > context_tokens:
            asked[name] = context_tokens
    options = fields.get("stream_options")
    usage_chunk = isinstance(options, Mapping) and options.get("include_usage") is True
    if usage_comment and fields.get("stream") and (options is None or isinstance(options, Mapping)):
        asked["stream_options"] = {**(options or {}), "include_usage": True}
    if isinstance(messages := fields.get("messages"), list):
        asked["messages"] = [_read_message(message) for message in messages]
    return asked, Wish(thinking, usage_chunk, usage_comment)


def plan_embedding(fields: Fields) -> Fields:
    """The fields for vLLM, which writes raw bytes as well.

    Raises:
        InvalidRequestBodyError: another encoding than OpenAI's two. The client's fault.
    """
    if fields.get("encoding_format", "float") not in ("float", "base64"):
        raise InvalidRequestBodyError(
            reason="`encoding_format` is `float` or `base64`", param="encoding_format"
        )
    return fields


def drop_nulls(fields: Fields) -> Fields:
    """The fields without those that are null: clients write that for what they leave open."""
    return {name: value for name, value in fields.items() if value is not None}


def _read_message(message: Any) -> Any:
    """A message as vLLM takes it: with reasoning under the name it knows, and without what lenient clients write.

    That is null for what they leave out, and a call's arguments as an object.
    """
    if not isinstance(message, dict):
        return message
    read = drop_nulls(message)
    reasoning = read.pop("reasoning_content", None)
    if reasoning is not None and not read.get("reasoning"):
        read["reasoning"] = reasoning
    _read_old_call(read)
    _read_refusal(read)
    if "content" in message and "content" not in read:
        read["content"] = None if read.get("role", "assistant") == "assistant" else ""
    if isinstance(calls := read.get("tool_calls"), list):
        read["tool_calls"] = [_read_call(call) for call in calls]
    return read


def _read_old_call(read: Fields) -> None:
    """A call, and what came of it, as chat wrote them before there could be several: the function's name tells them apart."""
    call = read.pop("function_call", None)
    if isinstance(call, dict) and not read.get("tool_calls"):
        read["tool_calls"] = [{"id": call.get("name"), "type": "function", "function": call}]
    if read.get("role") == "function":
        read |= {"role": "tool", "tool_call_id": read.get("name")}


def _read_refusal(read: Fields) -> None:
    """What an assistant said to refuse was said, too."""
    refusal, said = read.pop("refusal", None), read.get("content", "")
    if not isinstance(refusal, str):
        return
    if isinstance(said, list):
        read["content"] = [*said, {"type": "refusal", "refusal": refusal}]
    elif isinstance(said, str) and refusal:
        read["content"] = said + refusal


def _read_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    given = function.get("arguments")
    if given is not None and not isinstance(given, dict):
        return call
    arguments = "{}" if given is None else _ENCODE.encode(given).decode()
    return {**call, "function": {**function, "arguments": arguments}}
