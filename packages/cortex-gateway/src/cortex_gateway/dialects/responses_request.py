# SPDX-License-Identifier: GPL-3.0-or-later
"""How a request of OpenAI's Responses is put to an upstream that speaks chat alone.

| field | becomes |
|---|---|
| model, temperature, top_p, user | the same |
| stream | `stream`, with `stream_options.include_usage` |
| instructions, input | messages (`responses_input`) |
| tools, tool_choice, parallel_tool_calls | `responses_tools` |
| text.format | response_format |
| max_output_tokens | max_tokens |
| reasoning.effort | reasoning_effort; `none` switches thinking off in the chat template as well |
| metadata | is told again in the answer |
| store | taken, and nothing is kept |
| previous_response_id, conversation, prompt, background | refused: they need what a server keeps |
| everything else | dropped, and reported |

Pure.
"""

from typing import Any

import msgspec

from cortex_core.errors import (
    ChainedConversationError,
    InvalidRequestBodyError,
    MalformedJsonError,
    MissingModelFieldError,
)
from cortex_core.openai import read_body
from cortex_gateway.dialects.fields import Dropped, invalid, optional, require
from cortex_gateway.dialects.responses_input import Conversation
from cortex_gateway.dialects.responses_tools import read_tools, write_tools

Fields = dict[str, Any]

_ENCODE = msgspec.json.Encoder()
_READ = msgspec.json.Decoder(Fields)

_CARRIED = (
    "model stream instructions input tools tool_choice parallel_tool_calls text max_output_tokens reasoning metadata"
    " temperature top_p user store background previous_response_id conversation prompt"
).split()
_NUMBERS = ("temperature", "top_p")
_CHAINS = ("previous_response_id", "conversation")
# Needs something that is kept on the server, and is no chain.
_KEPT = ("background", "prompt")
# Some clients write out what is so anyway.
_USUAL = {"truncation": "disabled", "service_tier": "auto", "top_logprobs": 0, "include": []}


class Translated(msgspec.Struct, frozen=True, kw_only=True):
    """A request as the upstream gets it, and what the gateway must know of it.

    Attributes:
        body: the chat request.
        model: what the client named; may be an alias.
        stream: the client wants events.
        told: the fields that the answer tells again.
        dropped: names of what could not be carried, for `x-cortex-dropped`.
    """

    body: bytes
    model: str
    stream: bool
    told: Fields
    dropped: list[str]


def read_response_request(body: bytes) -> Translated:
    """The body of POST /v1/responses, translated.

    Raises:
        MalformedJsonError, MissingModelFieldError, InvalidRequestBodyError: as they say. The client's fault.
        ChainedConversationError: it goes on from something that is kept on a server.
    """
    try:
        return _translate(_read_object(body))
    except RecursionError:
        raise MalformedJsonError(reason="it is nested too deeply") from None


def _read_object(body: bytes) -> Fields:
    fields = read_body(body, _READ)
    if not fields.get("model"):
        raise MissingModelFieldError(param="model")
    require(fields["model"], str, "model")
    for name in _CHAINS:
        if fields.get(name) is not None:
            raise ChainedConversationError(field=name, param=name)
    for name in _KEPT:
        if fields.get(name):
            reason = f"`{name}` needs answers or prompts to be kept, and none are kept here"
            raise InvalidRequestBodyError(reason=reason, param=name)
    return fields


def _translate(fields: Fields) -> Translated:
    dropped = Dropped()
    unusual = {name: value for name, value in fields.items() if _USUAL.get(name) != value}
    dropped.note_rest(unusual, _CARRIED)
    tools = read_tools(fields, dropped)
    chat: Fields = {"model": fields["model"], "messages": _write_messages(fields, dropped)}
    for name in _NUMBERS:
        if (number := fields.get(name)) is not None:
            chat[name] = _require_number(number, name)
    if (user := optional(fields.get("user"), str, "user")) is not None:
        chat["user"] = user
    if (limit := optional(fields.get("max_output_tokens"), int, "max_output_tokens")) is not None:
        chat["max_tokens"] = limit
    chat |= write_tools(fields, tools, dropped)
    chat |= _write_format(fields, dropped) | _write_reasoning(fields, dropped)
    stream = optional(fields.get("stream"), bool, "stream") or False
    if stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    if optional(fields.get("store"), bool, "store"):
        dropped.note("store")
    return Translated(
        body=_ENCODE.encode(chat),
        model=fields["model"],
        stream=stream,
        told=_tell(fields, tools),
        dropped=dropped.names,
    )


def _require_number(value: object, path: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(path, "must be a number")
    return value


def _write_messages(fields: Fields, dropped: Dropped) -> list[Fields]:
    conversation = Conversation(dropped)
    if instructions := optional(fields.get("instructions"), str, "instructions"):
        conversation.system.append(instructions)
    given = fields.get("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    for number, item in enumerate(require(given, list, "input")):
        path = f"input.{number}"
        conversation.add(require(item, dict, path), path)
    messages = conversation.finish()
    if not messages:
        raise invalid("input", "says nothing")
    return messages


def _write_format(fields: Fields, dropped: Dropped) -> Fields:
    text = optional(fields.get("text"), dict, "text") or {}
    dropped.note_rest(text, ("format",), "text")
    wanted = optional(text.get("format"), dict, "text.format") or {"type": "text"}
    kind = require(wanted.get("type"), str, "text.format.type")
    if kind != "json_schema":
        dropped.note_rest(wanted, ("type",), "text", "format")
    match kind:
        case "text":
            return {}
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case "json_schema":
            schema = {name: value for name, value in wanted.items() if name != "type"}
            require(schema.get("schema"), dict, "text.format.schema")
            named = {"name": "output", **{k: v for k, v in schema.items() if v is not None}}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case _:
            raise invalid("text.format.type", "must be `text`, `json_object` or `json_schema`")


def _write_reasoning(fields: Fields, dropped: Dropped) -> Fields:
    reasoning = optional(fields.get("reasoning"), dict, "reasoning") or {}
    dropped.note_rest(reasoning, ("effort",), "reasoning")
    effort = optional(reasoning.get("effort"), str, "reasoning.effort")
    if effort is None:
        return {}
    chat: Fields = {"reasoning_effort": effort}
    if effort == "none":
        chat["chat_template_kwargs"] = {"enable_thinking": False}
    return chat


def _tell(fields: Fields, tools: list[Fields]) -> Fields:
    """What the answer tells again. Of a form or a choice that was not asked for, what is usual."""
    reasoning = fields.get("reasoning") or {}
    parallel = fields.get("parallel_tool_calls")
    text = {k: v for k, v in (fields.get("text") or {}).items() if v is not None}
    return {
        "instructions": fields.get("instructions"),
        "max_output_tokens": fields.get("max_output_tokens"),
        "metadata": fields.get("metadata") or {},
        "parallel_tool_calls": True if parallel is None else parallel,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "temperature": fields.get("temperature"),
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": tools,
        "top_p": fields.get("top_p"),
        "user": fields.get("user"),
    }
