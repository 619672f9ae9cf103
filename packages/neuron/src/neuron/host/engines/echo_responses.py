# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's Responses, as an echo engine speaks them: what is asked as a conversation, and the answer's events.

Text alone: whatever the model's id asks for, nothing is thought and no tool is called here. Pure.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from cortex_core import sse
from cortex_core.errors import ChainedConversationError, InvalidRequestBodyError
from cortex_core.openai import StreamOptions, Usage
from neuron.host.engines.echo_answer import Answer, ChatAsked, Message, plan_chat
from neuron.host.engines.echo_options import EchoOptions
from neuron.host.engines.echo_wire import Head

_ENCODE = msgspec.json.Encoder()
# created, in_progress, output_item.added, content_part.added
_OPENING_EVENTS = 4


class ResponsesAsked(msgspec.Struct, frozen=True):
    """What an echo engine reads of a request. `input` is a text, or a list of items."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    model: str | None = None


def plan_response(asked: ResponsesAsked, options: EchoOptions) -> Answer:
    """The answer, as `plan_chat` gives it.

    Raises:
        ChainedConversationError: it continues a response; none is kept.
        InvalidRequestBodyError, ContextLengthExceededError: as `plan_chat`.
    """
    if asked.previous_response_id is not None:
        raise ChainedConversationError(field="previous_response_id", param="previous_response_id")
    plain = msgspec.structs.replace(options, reasoning=False, tools=False)
    chat = ChatAsked(messages=_read_messages(asked), max_tokens=asked.max_output_tokens)
    return plan_chat(chat, plain)


def _read_messages(asked: ResponsesAsked) -> list[Message]:
    messages = [Message("system", asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*messages, Message("user", asked.input)]
    for item in asked.input:
        if item.get("type") == "function_call_output":
            item = {"role": "tool", "content": item.get("output")}
        if item.get("type", "message") == "message":  # the rest says nothing that could be repeated
            messages.append(_read_message(item))
    return messages


def _read_message(item: dict[str, Any]) -> Message:
    try:
        return msgspec.convert(item, Message)
    except msgspec.ValidationError as error:
        raise InvalidRequestBodyError(reason=str(error), param="input") from None


class ResponsesWriter:
    """/v1/responses."""

    prefix = "resp_"
    # The last event says that it is the last.
    ends_in = b""

    def whole(self, head: Head, answer: Answer) -> bytes:
        return _ENCODE.encode(_response(head, answer))

    def open(self, head: Head) -> bytes:
        begun = _response(head, None)
        part = {"item_id": _item_id(head), "output_index": 0, "content_index": 0, "part": _part("")}
        return b"".join(
            [
                _event(0, "response.created", response=begun),
                _event(1, "response.in_progress", response=begun),
                _event(2, "response.output_item.added", output_index=0, item=_item(head, None)),
                _event(3, "response.content_part.added", **part),
            ]
        )

    def parts(self, head: Head, answer: Answer) -> Iterator[bytes]:
        place = {"item_id": _item_id(head), "output_index": 0, "content_index": 0}
        for number, token in enumerate(answer.tokens, _OPENING_EVENTS):
            delta = {**place, "delta": token, "logprobs": []}
            yield _event(number, "response.output_text.delta", **delta)

    def close(self, head: Head, answer: Answer) -> bytes:
        at = _OPENING_EVENTS + len(answer.tokens)
        place = {"item_id": _item_id(head), "output_index": 0, "content_index": 0}
        text = "".join(answer.tokens)
        response = _response(head, answer)
        return b"".join(
            [
                _event(at, "response.output_text.done", **place, text=text, logprobs=[]),
                _event(at + 1, "response.content_part.done", **place, part=_part(text)),
                _event(
                    at + 2, "response.output_item.done", output_index=0, item=_item(head, answer)
                ),
                _event(at + 3, f"response.{response['status']}", response=response),
            ]
        )

    def usage(self, head: Head, usage: Usage) -> bytes:
        return b""  # it is in the last event, asked for or not


def _event(number: int, kind: str, **fields: object) -> bytes:
    data = _ENCODE.encode({"type": kind, "sequence_number": number, **fields})
    return f"event: {kind}\n".encode() + sse.write_data(data)


def _item_id(head: Head) -> str:
    return f"msg_{head.id.rpartition('_')[2]}"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(head: Head, answer: Answer | None) -> dict[str, Any]:
    return {
        "id": _item_id(head),
        "type": "message",
        "role": "assistant",
        "status": _status(answer),
        "content": [_part("".join(answer.tokens))] if answer else [],
    }


def _status(answer: Answer | None) -> str:
    """None: it has only begun."""
    if answer is None:
        return "in_progress"
    return "incomplete" if answer.finish_reason == "length" else "completed"


def _response(head: Head, answer: Answer | None) -> dict[str, Any]:
    status = _status(answer)
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "status": status,
        "model": head.model,
        "output": [_item(head, answer)] if answer else [],
        "usage": _usage(answer.usage) if answer else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
