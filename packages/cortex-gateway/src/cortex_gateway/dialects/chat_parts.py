# SPDX-License-Identifier: GPL-3.0-or-later
"""What an upstream says in OpenAI chat, whole or streamed: the fields that other dialects are made from. Pure."""

from typing import Any

import msgspec

from cortex_core.errors import UpstreamProtocolError
from cortex_core.openai import Usage
from cortex_gateway.usage import ToldUsage

_ENCODE = msgspec.json.Encoder()

# Others are of engines that gave up (`abort`, `error`).
_FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")


class Function(msgspec.Struct, frozen=True):
    """The function of a tool call, or of a piece of one. Some servers send the arguments as an object."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The arguments as they are in the model's words."""
        if isinstance(self.arguments, dict):
            return _ENCODE.encode(self.arguments).decode()
        return self.arguments or ""


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call, or a piece of one. `index` is in streams only, and some servers leave it out there too."""

    index: int | None = None
    id: str | None = None
    function: Function = Function()


class Said(msgspec.Struct, frozen=True):
    """A message, or a piece of one. vLLM says `reasoning`, most others `reasoning_content`."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class Stop(msgspec.Struct, frozen=True):
    """Why an answer ended.

    Attributes:
        finish_reason: OpenAI's word.
        stop_reason: the text that the client wanted to stop at, where the upstream is vLLM; may be a token's
            number, which no client asked for.
    """

    finish_reason: str
    stop_reason: str | int | None = None

    @property
    def is_known(self) -> bool:
        """Whether OpenAI has that word."""
        return self.finish_reason in _FINISH_REASONS


class ChunkChoice(msgspec.Struct, frozen=True, gc=False):
    """One choice of a chunk. Only the first is ever asked for."""

    index: int = 0
    delta: Said | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """The data of one event. `created` is Unix seconds; an `error` ends the stream."""

    id: str | None = None
    created: int | float | None = None
    model: str | None = None
    choices: list[ChunkChoice] | None = None
    usage: ToldUsage | None = None
    error: dict[str, Any] | str | None = None


class AnswerChoice(msgspec.Struct, frozen=True):
    """One choice of a whole answer."""

    message: Said
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    @property
    def stop(self) -> Stop:
        """Why it ended."""
        return Stop(self.finish_reason or "null", self.stop_reason)


class Answer(msgspec.Struct, frozen=True):
    """A whole answer. Some servers tell an error under status 200."""

    id: str | None = None
    created: int | float | None = None
    model: str | None = None
    choices: list[AnswerChoice] = []
    usage: ToldUsage | None = None
    error: dict[str, Any] | None = None

    @property
    def cost(self) -> Usage:
        """What it cost, as far as that is told."""
        return (self.usage or ToldUsage()).known()

    @property
    def said(self) -> Said:
        """What the model said."""
        return self.choices[0].message


_READ_ANSWER = msgspec.json.Decoder(Answer)


def read_answer(body: bytes, upstream: str) -> Answer:
    """A whole answer of `upstream`, which has a choice and came to a regular end.

    Raises:
        UpstreamProtocolError: it is none, or did not.
    """
    try:
        answer = _READ_ANSWER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamProtocolError(upstream=upstream, reason=str(error)) from None
    if not answer.choices:
        reason = (answer.error or {}).get("message", "an answer without choices")
        raise UpstreamProtocolError(upstream=upstream, reason=reason)
    stop = answer.choices[0].stop
    if not stop.is_known:
        reason = f"an answer that ended with finish_reason `{stop.finish_reason}`"
        raise UpstreamProtocolError(upstream=upstream, reason=reason)
    if any(not call.function.name for call in answer.said.tool_calls or ()):
        raise UpstreamProtocolError(upstream=upstream, reason="a tool call without a name")
    return answer


def is_nothing(arguments: str) -> bool:
    """Whether a call has no arguments: none were said, or `null`, which may be cut off."""
    return "null".startswith(arguments.strip())
