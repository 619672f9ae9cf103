# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's Responses API: what a request becomes before vLLM reads it, and what vLLM's answers lack.

Nothing is kept between two requests: who names an earlier response is told so, and SDKs then send the full history.
Agents replay what other servers gave them, so items that are only of use to those are passed over. Pure.
"""

from typing import Any

import msgspec

from cortex_core import responses, sse
from cortex_core.errors import ChainedConversationError, CortexError, InvalidRequestBodyError
from neuron.host.engines import vllm_asked
from neuron.host.engines.vllm_asked import Fields, Known, write_name
from neuron.host.engines.vllm_response_tools import plan_tools

PATH = "/v1/responses"

# Each of them names something that is kept on the server.
_CHAINS = ("previous_response_id", "conversation")
_REFERENCE = "item_reference"
_ITEMS = frozenset(
    """
    message reasoning function_call function_call_output custom_tool_call custom_tool_call_output
    """.split()
)
# What vLLM can tell beside an answer, or takes. OpenAI has more, of tools that it runs itself.
_INCLUDES = frozenset(
    """
    code_interpreter_call.outputs computer_call_output.output.image_url file_search_call.results
    message.input_image.image_url message.output_text.logprobs reasoning.encrypted_content
    """.split()
)
_TEXTS = ("text", "refusal")
# Fields of items, of their content, and of tools that something is made of, or that tell how a server called them.
_KNOWN: Known = {
    "input": {
        **dict.fromkeys(
            """
            type role id status call_id name namespace arguments output input summary encrypted_content
            """.split()
        ),
        "content": dict.fromkeys("type text refusal image_url detail".split()),
    },
    "tools": dict.fromkeys("type name description parameters strict format tools".split()),
}
_LINE_ENDS = "\r\n"
_ITEM_DONE = "response.output_item.done"
# vLLM takes these, and does nothing with them.
_IDLE = ("max_tool_calls", "prompt", "service_tier")


def plan_response(fields: Fields) -> Fields:
    """The fields for vLLM.

    Raises:
        ChainedConversationError: it continues something that is kept on a server. The client's fault, as the other.
        InvalidRequestBodyError: it wants to be answered later.
    """
    asked = dict(fields)
    for name in _CHAINS:
        if name in asked:
            raise ChainedConversationError(field=name, param=name)
    if asked.pop("background", False):
        reason = "`background` needs answers to be kept, and none are kept here"
        raise InvalidRequestBodyError(reason=reason, param="background")
    asked["store"] = False  # vLLM would never forget it
    if isinstance(items := asked.get("input"), list):
        asked["input"] = [read for item in items if (read := _read_item(item)) is not None]
    if isinstance(include := asked.get("include"), list):
        asked["include"] = [name for name in include if not _is_unknown(name)]
    asked.pop("tool_choice", None)
    return asked | plan_tools(fields)[0]


def name_dropped(fields: Fields) -> list[str]:
    """What is lost of a request, of which vLLM reads all: what `plan_response` leaves out, and what does nothing there."""
    given, include, text = fields.get("input"), fields.get("include"), fields.get("text")
    items = given if isinstance(given, list) else []
    tools, unoffered = plan_tools(fields)
    kept = {
        "input": [item for item in items if _read_item(item) is not None],
        "tools": tools.get("tools"),
    }
    found = [
        *map(_name_item, items),
        *vllm_asked.name_unread(kept, _KNOWN),
        *unoffered,
        "include" if isinstance(include, list) and any(map(_is_unknown, include)) else None,
        *(name for name in _IDLE if fields.get(name) not in (None, "auto")),
        "text.verbosity" if isinstance(text, dict) and text.get("verbosity") else None,
        "store" if fields.get("store") is True else None,
    ]
    return [name for name in found if name is not None]


def _name_item(item: Any) -> str | None:
    """What is left out of an item; None: nothing."""
    if not isinstance(item, dict) or item.get("type") == _REFERENCE or _read_item(item) is not None:
        return None
    is_sealed = item.get("type") == "reasoning"
    if is_sealed and not item.get("encrypted_content"):
        return None
    return "input.reasoning.encrypted_content" if is_sealed else write_name("input", item["type"])


def _is_unknown(included: Any) -> bool:
    return isinstance(included, str) and included not in _INCLUDES


def _read_item(item: Any) -> Any:
    """An item as vLLM takes it; None: it says nothing to a model."""
    if not isinstance(item, dict):
        return item
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == _REFERENCE:
        raise ChainedConversationError(field=_REFERENCE, param="input")
    if kind == "message":
        return _read_message({**item, "type": kind})
    if kind == "reasoning":
        return _read_reasoning(item)
    return None if isinstance(kind, str) and kind not in _ITEMS else item


def _read_message(item: Fields) -> Fields:
    """Any message has some content; an assistant's is one text, of which vLLM would take the first part alone."""
    content = item.get("content")
    if content is None:
        return {**item, "content": ""}
    if item.get("role") == "assistant" and isinstance(content, list):
        return {"type": "message", "role": "assistant", "content": _join(content)}
    return item


def _read_reasoning(item: Fields) -> Fields | None:
    """Reasoning that can be read. What another server encrypted is of use there alone."""
    readable = {k: v for k, v in item.items() if k != "encrypted_content" and v is not None}
    if not (readable.get("content") or readable.get("summary")):
        return None
    return {"summary": [], **readable}


def _join(parts: list[Any]) -> str:
    found = [part.get(name) for part in parts if isinstance(part, dict) for name in _TEXTS]
    return "".join(text for text in found if isinstance(text, str))


# What OpenAI's own answers always have, where vLLM says null or nothing.
_ALWAYS: Fields = {
    "completed_at": None,
    "error": None,
    "metadata": {},
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": False,
    "text": {"format": {"type": "text"}},
    "top_logprobs": 0,
}
# vLLM's own.
_OWN = frozenset(
    """
    ec_transfer_params input_messages kv_transfer_params metrics output_messages
    """.split()
)


def read_told(fields: Fields) -> Fields:
    """What an answer tells again of its request, where vLLM tells what it made of that."""
    text = fields.get("text")
    asked = vllm_asked.drop_nulls(text) if isinstance(text, dict) else {}
    return {
        "text": {**_ALWAYS["text"], **asked},
        "tool_choice": fields.get("tool_choice") or "auto",
    }


def shape_response(response: Fields, told: Fields | None = None) -> Fields:
    """A response of vLLM's as ours: without the white space around its texts, and with the fields that clients expect.

    `told` is what `read_told` found; None: nothing.
    """
    shaped = {k: v for k, v in response.items() if v is not None or k not in _OWN}
    for name, value in _ALWAYS.items():
        if shaped.get(name) is None:
            shaped[name] = value
    output = [item for item in map(_shape_item, response["output"]) if item is not None]
    if output and response["status"] == "incomplete":
        output[-1] = {**output[-1], "status": "incomplete"}
    return {**shaped, **(told or {}), "output": output}


def _shape_item(item: Fields) -> Fields | None:
    """An item with its texts trimmed; None: nothing is left of it."""
    if item["type"] not in ("message", "reasoning"):
        return item
    parts = [_shape_part(part) for part in item.get("content") or []]
    kept = [part for part in parts if part.get("text")]
    return {**item, "content": kept, "status": item.get("status") or "completed"} if kept else None


def _shape_part(part: Fields) -> Fields:
    if not isinstance(part.get("text"), str):
        return part
    # vLLM's parsers leave the line ends around the markers of reasoning.
    shaped = {**part, "text": part["text"].lstrip(_LINE_ENDS).rstrip()}
    if part.get("type") == "output_text" and part.get("logprobs") is None:
        shaped["logprobs"] = []
    return shaped


class ResponseEvents:
    """The events of one stream, as ours: an item is told of when it has some text, and all are numbered anew."""

    def __init__(self, told: Fields | None = None) -> None:
        self._told_again = told
        self._number = 0
        self._dropped = 0
        self._opening: list[Fields] = []
        self._text = ""
        self._blank = ""
        self._ended: list[Fields] = []

    @property
    def next_number(self) -> int:
        """The sequence number of the event that would come next."""
        return self._number

    def feed(self, event: Fields) -> list[Fields]:
        """One event of vLLM's; returns those that go out for it, often none.

        The end of an item goes out with what comes next: the end of the whole tells whether it was cut off.
        """
        found = self._shape(event)
        for out in found:
            if "output_index" in out:
                out["output_index"] -= self._dropped
        if not found:
            return []
        if found[-1]["type"] == "response.incomplete":
            for out in self._ended:
                out["item"]["status"] = "incomplete"
        found, self._ended = [*self._ended, *found], []
        if found[-1]["type"] == _ITEM_DONE:
            self._ended.append(found.pop())
        return self._count(found)

    def flush(self) -> list[Fields]:
        """What is left where the stream breaks off."""
        found, self._ended = self._ended, []
        return self._count(found)

    def _count(self, found: list[Fields]) -> list[Fields]:
        for out in found:
            out["sequence_number"] = self._number
            self._number += 1
        return found

    def _shape(self, event: Fields) -> list[Fields]:
        kind = event["type"]
        if "response" in event:
            return [_shape_whole(event, self._told_again)]
        if kind == "response.output_item.added":
            return self._open(event)
        if kind in ("response.output_text.delta", "response.reasoning_text.delta"):
            return self._add(event)
        if self._opening:
            return self._wait(event)
        return [self._close(event)]

    def _open(self, event: Fields) -> list[Fields]:
        kind = event["item"]["type"]
        self._text = self._blank = ""
        if kind not in ("message", "reasoning"):
            return [event]
        self._opening = [event]
        return []

    def _wait(self, event: Fields) -> list[Fields]:
        """What belongs to an item that has no text yet. If it ends so, it was none."""
        self._opening.append(event)
        if event["type"] == _ITEM_DONE:
            self._opening = []
            self._dropped += 1
        return []

    def _add(self, event: Fields) -> list[Fields]:
        """A piece of text. White space waits for more text to show that it stands inside."""
        piece = self._blank + event["delta"]
        if not self._text:
            piece = piece.lstrip(_LINE_ENDS)
        out = piece.rstrip()
        self._blank = piece[len(out) :]
        self._text += out
        if not out:
            return []
        opening, self._opening = self._opening, []
        return [*opening, {**event, "delta": out}]

    def _close(self, event: Fields) -> Fields:
        """An event that tells the whole text of the item again."""
        if "text" in event:
            return {**event, "text": self._text}
        if (part := event.get("part")) and event["type"] == "response.content_part.done":
            return {**event, "part": _shape_part(part)}
        if (item := event.get("item")) and self._text:
            return {**event, "item": _shape_item(item)}
        return event


def _shape_whole(event: Fields, told: Fields | None) -> Fields:
    """An event that tells of the whole response. One that was cut off has an event of its own in OpenAI's protocol."""
    response = shape_response(event["response"], told)
    kind = event["type"]
    if kind == "response.completed" and response["status"] == "incomplete":
        kind = "response.incomplete"
    return {**event, "type": kind, "response": response}


_DECODE = msgspec.json.Decoder()
_ENCODE = msgspec.json.Encoder()


class ResponseStream:
    """A stream of vLLM's, event by event, as ours. `told`: as in `shape_response`."""

    def __init__(self, told: Fields | None = None) -> None:
        self._events = ResponseEvents(told)

    def feed(self, event: bytes) -> bytes:
        """One event; returns what goes to the client for it, often nothing."""
        data = sse.read_event(event).data
        shaped = self._events.feed(_DECODE.decode(data)) if data else []
        return b"".join(_write(fields) for fields in shaped)

    def fail(self, error: CortexError) -> bytes:
        """How the stream ends in an error."""
        left = b"".join(_write(fields) for fields in self._events.flush())
        return left + responses.write_error_event(error, self._events.next_number)


def _write(fields: Fields) -> bytes:
    return f"event: {fields['type']}\n".encode() + sse.write_data(_ENCODE.encode(fields))
