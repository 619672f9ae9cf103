# SPDX-License-Identifier: GPL-3.0-or-later
"""How an echo engine's answer is written, in the words of OpenAI's API. Pure."""

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from cortex_core import sse, wire
from cortex_core.openai import Usage
from neuron.host.engines.echo_answer import Answer

_ENCODE = msgspec.json.Encoder()


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in every part of one answer. `created` is in Unix seconds."""

    id: str
    created: int
    model: str


class Writer(Protocol):
    """Writes answers of one route. `ends_in`: what a stream ends in, after all that is in an answer."""

    ends_in: bytes

    def whole(self, head: Head, answer: Answer) -> bytes:
        """The answer in one piece."""

    def open(self, head: Head) -> bytes:
        """What a stream begins with; may be empty."""

    def parts(self, head: Head, answer: Answer) -> Iterator[bytes]:
        """One event per token."""

    def close(self, head: Head, answer: Answer) -> bytes:
        """The event with the finish reason."""

    def usage(self, head: Head, usage: Usage) -> bytes:
        """The event with the usage, which has no choices."""


def write_usage_comment(usage: Usage) -> bytes:
    """The comment that a gateway asks for and takes out."""
    return wire.USAGE_COMMENT + _ENCODE.encode(usage) + b"\n\n"


class ChatWriter:
    """/v1/chat/completions."""

    prefix = "chatcmpl-"
    ends_in = sse.DONE

    def whole(self, head: Head, answer: Answer) -> bytes:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if answer.call else "".join(answer.tokens),
        }
        if answer.thinking:
            message["reasoning_content"] = "".join(answer.thinking)
        if answer.call:
            message["tool_calls"] = [_call(head, answer.call)]
        choice = _choice("message", message, answer.finish_reason)
        return _body(head, "chat.completion", [choice], answer.usage)

    def open(self, head: Head) -> bytes:
        return _event(head, {"role": "assistant", "content": ""})

    def parts(self, head: Head, answer: Answer) -> Iterator[bytes]:
        for thought in answer.thinking:
            yield _event(head, {"reasoning_content": thought})
        for token in answer.tokens:
            yield _event(head, {"content": token})
        if answer.call:
            name, arguments = answer.call
            yield _event(head, {"tool_calls": [{"index": 0, **_call(head, (name, ""))}]})
            function = {"arguments": arguments}
            yield _event(head, {"tool_calls": [{"index": 0, "function": function}]})

    def close(self, head: Head, answer: Answer) -> bytes:
        return _event(head, {}, answer.finish_reason)

    def usage(self, head: Head, usage: Usage) -> bytes:
        return sse.write_data(_body(head, "chat.completion.chunk", [], usage))


class CompletionWriter:
    """/v1/completions."""

    prefix = "cmpl-"
    ends_in = sse.DONE

    def whole(self, head: Head, answer: Answer) -> bytes:
        choice = _choice("text", "".join(answer.tokens), answer.finish_reason)
        return _body(head, "text_completion", [choice], answer.usage)

    def open(self, head: Head) -> bytes:
        return b""

    def parts(self, head: Head, answer: Answer) -> Iterator[bytes]:
        for token in answer.tokens:
            yield self._event(head, token, None)

    def close(self, head: Head, answer: Answer) -> bytes:
        return self._event(head, "", answer.finish_reason)

    def usage(self, head: Head, usage: Usage) -> bytes:
        return sse.write_data(_body(head, "text_completion", [], usage))

    def _event(self, head: Head, text: str, finish_reason: str | None) -> bytes:
        return sse.write_data(
            _body(head, "text_completion", [_choice("text", text, finish_reason)])
        )


def _call(head: Head, call: tuple[str, str]) -> dict[str, Any]:
    name, arguments = call
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{head.id[-12:]}", "type": "function", "function": function}


def _event(head: Head, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = _choice("delta", delta, finish_reason)
    return sse.write_data(_body(head, "chat.completion.chunk", [choice]))


def _choice(name: str, value: object, finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, name: value, "logprobs": None, "finish_reason": finish_reason}


def _body(
    head: Head, kind: str, choices: list[dict[str, Any]], usage: Usage | None = None
) -> bytes:
    body: dict[str, Any] = {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "choices": choices,
    }
    if usage is not None:
        body["usage"] = usage
    return _ENCODE.encode(body)
