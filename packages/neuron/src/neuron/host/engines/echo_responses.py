# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's Responses, as an echo engine speaks them: what is asked as a conversation, and the answer's events.

Texts and calls: whatever the model's id asks for, nothing is thought here. Pure.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from cortex_core import sse
from cortex_core.errors import ChainedConversationError, InvalidRequestBodyError
from cortex_core.openai import StreamOptions, Usage
from neuron.host.engines.echo_answer import Answer, ChatAsked, Function, Message, Tool, plan_chat
from neuron.host.engines.echo_options import EchoOptions
from neuron.host.engines.echo_wire import Head

_ENCODE = msgspec.json.Encoder()
# created, in_progress
_OPENING_EVENTS = 2
# output_item.added, content_part.added
_ITEM_EVENTS = 2


class ResponsesAsked(msgspec.Struct, frozen=True):
    """What an echo engine reads of a request. `input` is a text, or a list of items; of the tools it has functions."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    model: str | None = None


def plan_response(asked: ResponsesAsked, options: EchoOptions) -> Answer:
    """The answer, as `plan_chat` gives it.

    Raises:
        ChainedConversationError: it continues a response, or names an item of one; none is kept.
        InvalidRequestBodyError, ContextLengthExceededError: as `plan_chat`.
    """
    if asked.previous_response_id is not None:
        raise ChainedConversationError(field="previous_response_id", param="previous_response_id")
    chat = ChatAsked(
        messages=_read_messages(asked),
        max_tokens=asked.max_output_tokens,
        tools=[_read_tool(tool) for tool in asked.tools or () if tool.get("type") == "function"],
        tool_choice=asked.tool_choice,
    )
    return plan_chat(chat, msgspec.structs.replace(options, reasoning=False))


def _read_tool(tool: dict[str, Any]) -> Tool:
    try:
        return Tool(msgspec.convert(tool, Function))
    except msgspec.ValidationError as error:
        raise InvalidRequestBodyError(reason=str(error), param="tools") from None


def _read_messages(asked: ResponsesAsked) -> list[Message]:
    messages = [Message("system", asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*messages, Message("user", asked.input)]
    for item in asked.input:
        if item.get("type") == "item_reference":
            raise ChainedConversationError(field="item_reference", param="input")
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
        return _events(
            0,
            ("response.created", {"response": begun}),
            ("response.in_progress", {"response": begun}),
        )

    def parts(self, head: Head, answer: Answer) -> Iterator[bytes]:
        at = _OPENING_EVENTS
        if answer.call:
            item = _call_item(head, (answer.call[0], ""), "in_progress")
            yield _events(at, ("response.output_item.added", {"output_index": 0, "item": item}))
            delta = {"item_id": item["id"], "output_index": 0, "delta": answer.call[1]}
            yield _events(at + 1, ("response.function_call_arguments.delta", delta))
            return
        place = _place(head)
        begun = _events(
            at,
            ("response.output_item.added", {"output_index": 0, "item": _item(head, None)}),
            ("response.content_part.added", {**place, "part": _part("")}),
        )
        for number, token in enumerate(answer.tokens, at + _ITEM_EVENTS):
            delta = {**place, "delta": token, "logprobs": []}
            yield begun + _events(number, ("response.output_text.delta", delta))
            begun = b""

    def close(self, head: Head, answer: Answer) -> bytes:
        item, response = _item(head, answer), _response(head, answer)
        last: list[tuple[str, dict[str, Any]]] = [
            ("response.output_item.done", {"output_index": 0, "item": item}),
            (f"response.{response['status']}", {"response": response}),
        ]
        at = _OPENING_EVENTS + _ITEM_EVENTS + len(answer.tokens)
        if answer.call:
            told = {name: item[name] for name in ("name", "arguments")}
            done = {"item_id": item["id"], "output_index": 0, **told}
            return _events(at, ("response.function_call_arguments.done", done), *last)
        text = "".join(answer.tokens)
        done = {**_place(head), "text": text, "logprobs": []}
        part = {**_place(head), "part": _part(text)}
        return _events(
            at, ("response.output_text.done", done), ("response.content_part.done", part), *last
        )

    def usage(self, head: Head, usage: Usage) -> bytes:
        return b""  # it is in the last event, asked for or not


def _events(first: int, *events: tuple[str, dict[str, Any]]) -> bytes:
    """Events of these kinds with these fields, numbered on from `first`."""
    written = b""
    for number, (kind, fields) in enumerate(events, first):
        data = _ENCODE.encode({"type": kind, "sequence_number": number, **fields})
        written += f"event: {kind}\n".encode() + sse.write_data(data)
    return written


def _place(head: Head) -> dict[str, Any]:
    """Where a text stands."""
    return {"item_id": _item_id(head), "output_index": 0, "content_index": 0}


def _item_id(head: Head) -> str:
    return f"msg_{head.id.rpartition('_')[2]}"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(head: Head, call: tuple[str, str], status: str) -> dict[str, Any]:
    name, arguments = call
    own_id = head.id.rpartition("_")[2]
    return {
        "id": f"fc_{own_id}",
        "type": "function_call",
        "status": status,
        "arguments": arguments,
        "call_id": f"call_{own_id}",
        "name": name,
    }


def _item(head: Head, answer: Answer | None) -> dict[str, Any]:
    if answer is not None and answer.call:
        return _call_item(head, answer.call, "completed")
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
