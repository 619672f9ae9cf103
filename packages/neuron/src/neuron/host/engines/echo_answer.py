# SPDX-License-Identifier: GPL-3.0-or-later
"""What an echo engine answers: the last thing that was said, token by token. A token is a word. Pure."""

import itertools
import re
from typing import Any

import msgspec

from cortex_core.errors import ContextLengthExceededError, InvalidRequestBodyError
from cortex_core.openai import CompletionDetails, StreamOptions, Usage
from neuron.host.engines.echo_options import EchoOptions

THOUGHT = "I will repeat what I was told."
SILENCE = "You said nothing."

_TOKEN = re.compile(r"\s*\S+|\s+$")


class Function(msgspec.Struct, frozen=True):
    """A function that a request offers."""

    name: str
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct, frozen=True):
    """A tool that a request offers."""

    function: Function


class Message(msgspec.Struct, frozen=True):
    """A message of a conversation. `content` is text, a list of parts, or None."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """Its text; parts that are not text are left out."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class ChatAsked(msgspec.Struct, frozen=True):
    """What an echo engine reads of a chat request."""

    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    model: str | None = None


class CompletionAsked(msgspec.Struct, frozen=True):
    """What an echo engine reads of a completion request."""

    prompt: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    model: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer, before it is sent.

    Attributes:
        thinking, tokens: reasoning and text, in the pieces that a stream has.
        call: name and arguments (JSON) of the tool that is called; None: none is.
        finish_reason: `stop`, `length` or `tool_calls`.
    """

    thinking: list[str] = []
    tokens: list[str] = []
    call: tuple[str, str] | None = None
    finish_reason: str
    usage: Usage


def split_tokens(text: str) -> list[str]:
    """Words, each with the white space before it; joined they are the text again."""
    return _TOKEN.findall(text)


def plan_chat(asked: ChatAsked, options: EchoOptions) -> Answer:
    """The answer to a conversation: its last message that is not the assistant's.

    Raises:
        InvalidRequestBodyError: there is no message, or a limit is no number of tokens.
        ContextLengthExceededError: prompt and answer are longer than the model's context.
    """
    if not asked.messages:
        raise InvalidRequestBodyError(reason="`messages` is empty", param="messages")
    said = [message for message in asked.messages if message.role != "assistant"]
    text = said[-1].text if said else ""
    prompt_tokens = sum(len(split_tokens(message.text)) for message in asked.messages)
    limit = asked.max_completion_tokens or asked.max_tokens
    thinking = split_tokens(THOUGHT) if options.reasoning else []
    if (tool := _tool_to_call(asked, options)) is not None:
        arguments = write_arguments(tool.function, text)
        usage = _usage(prompt_tokens, thinking, [tool.function.name, *split_tokens(arguments)])
        call = (tool.function.name, arguments)
        return Answer(thinking=thinking, call=call, finish_reason="tool_calls", usage=usage)
    return _plan(text, prompt_tokens, limit, asked.stop, thinking, options)


def plan_completion(asked: CompletionAsked, options: EchoOptions) -> Answer:
    """The answer to a prompt: itself. Raises as `plan_chat`."""
    prompt_tokens = len(split_tokens(asked.prompt))
    return _plan(asked.prompt, prompt_tokens, asked.max_tokens, asked.stop, [], options)


def _plan(
    text: str,
    prompt_tokens: int,
    limit: int | None,
    stop: str | list[str] | None,
    thinking: list[str],
    options: EchoOptions,
) -> Answer:
    limit = _check_limit(limit, prompt_tokens, options.context)
    tokens = cut_at_stop(_lengthen(split_tokens(text or SILENCE), options.tokens), stop)
    thinking, cut = thinking[:limit], len(thinking) + len(tokens) > limit
    tokens = tokens[: limit - len(thinking)]
    return Answer(
        thinking=thinking,
        tokens=tokens,
        finish_reason="length" if cut else "stop",
        usage=_usage(prompt_tokens, thinking, tokens),
    )


def _check_limit(limit: int | None, prompt_tokens: int, context: int | None) -> int:
    """Tokens that the answer may have at most."""
    if limit is not None and limit < 1:
        raise InvalidRequestBodyError(reason=f"`max_tokens` is {limit}", param="max_tokens")
    room = 1_000_000_000 if context is None else context - prompt_tokens
    if room < (limit or 1):
        raise ContextLengthExceededError(
            reason=f"This model's maximum context length is {context} tokens. However, you requested "
            f"{limit or 1} output tokens and your prompt contains {prompt_tokens}. Shorten one of them.",
            param="messages",
        )
    return limit or room


def _lengthen(tokens: list[str], count: int | None) -> list[str]:
    """The tokens over and over, as many as asked for."""
    if count is None:
        return tokens
    again = [token if token[0].isspace() else f" {token}" for token in tokens]
    return list(itertools.islice(itertools.chain(tokens, itertools.cycle(again)), count))


def cut_at_stop(tokens: list[str], stop: str | list[str] | None) -> list[str]:
    """The tokens before the first stop sequence, which may lie across several of them."""
    stops = [stop] if isinstance(stop, str) else stop or []
    text = "".join(tokens) if stops else ""
    found = [at for word in stops if word and (at := text.find(word)) >= 0]
    if not found:
        return tokens
    return split_tokens(text[: min(found)])


def _tool_to_call(asked: ChatAsked, options: EchoOptions) -> Tool | None:
    """The first tool; none when the last message is a tool's own result, or the client wants no call."""
    wanted = options.tools and asked.tools and asked.tool_choice != "none"
    if not wanted or not asked.tools or asked.messages[-1].role == "tool":
        return None
    return asked.tools[0]


def write_arguments(function: Function, text: str) -> str:
    """Arguments that fit the function's schema: the text for strings, something simple for the rest."""
    parameters = function.parameters or {}
    properties = parameters.get("properties", {})
    simple = {
        "string": text,
        "integer": 1,
        "number": 1.5,
        "boolean": True,
        "array": [],
        "object": {},
    }
    arguments = {
        name: simple.get(str(schema.get("type")) if isinstance(schema, dict) else "")
        for name, schema in properties.items()
        if name in parameters.get("required", properties)
    }
    return msgspec.json.encode(arguments).decode()


def _usage(prompt_tokens: int, thinking: list[str], tokens: list[str]) -> Usage:
    completion_tokens = len(thinking) + len(tokens)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        completion_tokens_details=CompletionDetails(len(thinking)) if thinking else None,
    )
