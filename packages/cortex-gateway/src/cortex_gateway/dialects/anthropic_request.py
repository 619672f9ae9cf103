# SPDX-License-Identifier: GPL-3.0-or-later
"""How a request of Anthropic's Messages API is put to an upstream that speaks OpenAI chat.

| field | becomes |
|---|---|
| model, max_tokens, temperature, top_k | the same |
| top_p | the same; for 0, which vLLM refuses, the least that it takes |
| stream | `stream`, with `stream_options.include_usage` |
| system, turns of role `system` | one leading system message, their texts in order with an empty line between: templates refuse others |
| messages | messages; turns of one role in a row are one turn, as Anthropic has it (`anthropic_content` for blocks) |
| a last turn of the assistant | continued, by `continue_final_message`; one that says nothing is left out, as is what it thought |
| tools, tool_choice | `anthropic_tools` |
| stop_sequences | stop |
| thinking | `chat_template_kwargs.enable_thinking`; not asked for means no |
| output_config.format, output_format | response_format |
| metadata.user_id | user |
| thread | refused, with the body that makes Anthropic's SDKs send the full history |
| everything else | dropped, and reported |

Pure.
"""

from typing import Any

import msgspec

from cortex_core.errors import (
    ChainedConversationError,
    MalformedJsonError,
    MissingModelFieldError,
)
from cortex_core.openai import read_body
from cortex_gateway.dialects import anthropic_content, prefix_hygiene
from cortex_gateway.dialects.anthropic_fields import Block, read_blocks
from cortex_gateway.dialects.anthropic_tools import write_tools
from cortex_gateway.dialects.fields import Dropped, invalid, optional, require

_ENCODE = msgspec.json.Encoder()
_READ = msgspec.json.Decoder(dict[str, Any])

_CARRIED = (
    "model messages system max_tokens stream stop_sequences temperature top_p top_k metadata thinking tools"
    " tool_choice output_config output_format"
).split()
_NUMBERS = ("temperature", "top_p", "top_k")
# The likeliest token alone, as 0 means it.
_LEAST_TOP_P = 1e-6

# How the model may choose among tools is no part of its prompt.
_NO_PROMPT = frozenset({"tool_choice", "parallel_tool_calls"})

# What the SDKs look for in `error.details` to go on without a thread (`anthropic` 2.x, `@anthropic-ai/sdk` 1.x).
_NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


class Translated(msgspec.Struct, frozen=True, kw_only=True):
    """A request as the upstream gets it, and what the gateway must know of it.

    Attributes:
        body: the OpenAI chat request.
        model: what the client named; may be an alias.
        stream: the client wants events.
        dropped: names of what could not be carried, for `x-cortex-dropped`.
        hygiene: names of the prefix hygiene rules that fired.
    """

    body: bytes
    model: str
    stream: bool
    dropped: list[str]
    hygiene: list[str]


def read_messages(body: bytes, rules: frozenset[str] = prefix_hygiene.ALL_RULES) -> Translated:
    """The body of POST /v1/messages, translated; `rules` are the prefix hygiene rules in force.

    Raises:
        MalformedJsonError, MissingModelFieldError, InvalidRequestBodyError: as they say. The client's fault.
        ChainedConversationError: it continues or begins a conversation kept on the server.
    """
    try:
        return _read_messages(_read_object(body), rules)
    except RecursionError:
        raise MalformedJsonError(reason="it is nested too deeply") from None


def read_count(body: bytes, rules: frozenset[str] = prefix_hygiene.ALL_RULES) -> Translated:
    """The body of POST /v1/messages/count_tokens, as the same prompt in OpenAI chat. Raises as `read_messages`.

    What a message would be asked for beside its prompt, such as `temperature`, is not carried, and not reported.
    """
    try:
        fields = _read_object(body)
        dropped = Dropped()
        dropped.note_rest(fields, _CARRIED)
        chat, fired = _write_prompt(fields, rules, dropped)
        prompt = {name: chat[name] for name in chat.keys() - _NO_PROMPT}
        return _finish(fields, prompt, False, dropped, fired)
    except RecursionError:
        raise MalformedJsonError(reason="it is nested too deeply") from None


def _read_object(body: bytes) -> dict[str, Any]:
    fields = read_body(body, _READ)
    if not fields.get("model"):
        raise MissingModelFieldError(param="model")
    require(fields["model"], str, "model")
    if fields.get("thread") is not None:
        raise ChainedConversationError(field="thread", param="thread", details=_NO_THREADS)
    return fields


def _read_messages(fields: dict[str, Any], rules: frozenset[str]) -> Translated:
    dropped = Dropped()
    dropped.note_rest(fields, _CARRIED)
    chat, fired = _write_prompt(fields, rules, dropped)
    chat["max_tokens"] = require(fields.get("max_tokens"), int, "max_tokens")
    if chat["max_tokens"] < 1:
        raise invalid("max_tokens", "must be 1 or more")
    for name in _NUMBERS:
        if (number := fields.get(name)) is not None:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise invalid(name, "must be a number")
            chat[name] = number
    if chat.get("top_p") == 0:
        chat["top_p"] = _LEAST_TOP_P
    if stop := optional(fields.get("stop_sequences"), list, "stop_sequences"):
        chat["stop"] = [require(one, str, f"stop_sequences.{at}") for at, one in enumerate(stop)]
    chat |= _write_format(fields, dropped) | _write_user(fields, dropped)
    stream = optional(fields.get("stream"), bool, "stream") or False
    if stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    return _finish(fields, chat, stream, dropped, fired)


def _finish(
    fields: dict[str, Any], chat: dict[str, Any], stream: bool, dropped: Dropped, fired: list[str]
) -> Translated:
    return Translated(
        body=_ENCODE.encode({"model": fields["model"], **chat}),
        model=fields["model"],
        stream=stream,
        dropped=dropped.names,
        hygiene=fired,
    )


def _write_prompt(
    fields: dict[str, Any], rules: frozenset[str], dropped: Dropped
) -> tuple[dict[str, Any], list[str]]:
    """Everything that the chat template sees, and the hygiene rules that fired."""
    system, turns = _read_turns(fields, dropped)
    system, fired = prefix_hygiene.clean_system(system, rules)
    messages: list[dict[str, Any]] = []
    if text := "\n\n".join(one for one in system if one):
        messages.append({"role": "system", "content": text})
    for role, blocks in turns:
        if role == "user":
            messages += anthropic_content.write_user(blocks, dropped)
        else:
            messages.append(anthropic_content.write_assistant(blocks, dropped))
    begun = _take_begun(messages, dropped)
    chat = {
        "messages": messages,
        **write_tools(fields, dropped),
        **_write_thinking(fields, dropped),
        **begun,
    }
    return chat, fired


def _take_begun(messages: list[dict[str, Any]], dropped: Dropped) -> dict[str, Any]:
    """How an answer that has begun goes on. One that has said nothing is begun anew, so its turn is taken out."""
    last = messages[-1]
    if last["role"] != "assistant" or "tool_calls" in last:
        return {}
    if last["content"]:
        return {"continue_final_message": True, "add_generation_prompt": False}
    if len(messages) > 1:
        messages.pop()
        if "reasoning_content" in last:
            dropped.note("thinking")
    return {}


def _read_turns(
    fields: dict[str, Any], dropped: Dropped
) -> tuple[list[str], list[tuple[str, list[Block]]]]:
    """All system texts in order, and the turns of user and assistant, neighbours of one role as one."""
    system: list[str] = []
    if (prompt := fields.get("system")) is not None:
        system += anthropic_content.read_system(read_blocks(prompt, "system"), dropped)
    turns: list[tuple[str, list[Block]]] = []
    for number, message in enumerate(require(fields.get("messages"), list, "messages")):
        path = f"messages.{number}"
        role = require(require(message, dict, path).get("role"), str, f"{path}.role")
        blocks = read_blocks(message.get("content"), f"{path}.content")
        dropped.note_rest(message, ("role", "content"), "messages")
        if role == "system":
            system += anthropic_content.read_system(blocks, dropped)
        elif role not in ("user", "assistant"):
            raise invalid(f"{path}.role", "must be `user`, `assistant` or `system`")
        elif turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if not turns:
        raise invalid("messages", "must hold at least one message of the user")
    return system, turns


def _write_thinking(fields: dict[str, Any], dropped: Dropped) -> dict[str, Any]:
    """A client that does not ask for thinking expects text first, and its `max_tokens` to be spent on that."""
    thinking = optional(fields.get("thinking"), dict, "thinking")
    if thinking is None:
        thinking = {"type": "disabled"}
    kind = require(thinking.get("type"), str, "thinking.type")
    carried = ["type"]
    if thinking.get("display") == "summarized":
        carried.append("display")
    dropped.note_rest(thinking, carried, "thinking")
    if kind not in ("enabled", "adaptive", "disabled"):
        dropped.note("thinking", "type")
    return {"chat_template_kwargs": {"enable_thinking": kind != "disabled"}}


def _write_format(fields: dict[str, Any], dropped: Dropped) -> dict[str, Any]:
    config = optional(fields.get("output_config"), dict, "output_config") or {}
    dropped.note_rest(config, ("format",), "output_config")
    wanted, path = config.get("format"), "output_config.format"
    if wanted is None:
        wanted, path = fields.get("output_format"), "output_format"
    else:
        dropped.note_rest({"output_format": fields.get("output_format")}, ())
    wanted = optional(wanted, dict, path)
    if wanted is None:
        return {}
    if wanted.get("type") != "json_schema":
        raise invalid(f"{path}.type", "must be `json_schema`")
    dropped.note_rest(wanted, ("type", "schema"), *path.split("."))
    schema = require(wanted.get("schema"), dict, f"{path}.schema")
    named = {"name": "output", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _write_user(fields: dict[str, Any], dropped: Dropped) -> dict[str, Any]:
    metadata = optional(fields.get("metadata"), dict, "metadata") or {}
    dropped.note_rest(metadata, ("user_id",), "metadata")
    user = optional(metadata.get("user_id"), str, "metadata.user_id")
    return {"user": user} if user else {}
