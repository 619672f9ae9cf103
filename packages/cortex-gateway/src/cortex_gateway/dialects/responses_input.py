# SPDX-License-Identifier: GPL-3.0-or-later
"""What the input items of OpenAI's Responses are in OpenAI chat.

| item | becomes |
|---|---|
| a string | one message of the user |
| message, with its type or without | a message; system and developer are hoisted into one leading system message: templates refuse others |
| reasoning | `reasoning_content` of the turn, its content or else its summary; without a readable text it is passed over |
| function_call | one of the turn's `tool_calls` |
| function_call_output | a `tool` message; its images go with the user's next turn |
| item_reference | refused: it names what is kept on a server |
| what is not known, and fields beyond these | dropped, and reported |

Neighbouring items of the model are one turn, as they were generated. To add one: a row here, a case in `add`. Pure.
"""

from typing import Any

import msgspec

from cortex_core.errors import ChainedConversationError
from cortex_gateway.dialects.fields import Dropped, invalid, optional, require

_ENCODE = msgspec.json.Encoder()

Fields = dict[str, Any]

_SYSTEM = ("system", "developer")
_ROLES = (*_SYSTEM, "user", "assistant")
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_NOT_KEPT = "item_reference"
# How a server called an item, and how it ended there: no model is told that.
_LABELS = ("type", "id", "status")
# What an item, or a part, may hold without anything getting lost.
_ITEMS = {
    "message": (*_LABELS, "role", "content"),
    "reasoning": (*_LABELS, "content", "summary"),
    "function_call": (*_LABELS, "call_id", "name", "arguments"),
    "function_call_output": (*_LABELS, "call_id", "output"),
}
_OF_TEXT = ("type", "text")
_PARTS = {
    **{kind: ("type", field) for kind, field in _TEXTS.items()},
    "input_image": ("type", "image_url", "detail"),
}


class Conversation:
    """A conversation on its way into chat's messages, item by item.

    Attributes:
        system: texts of the system and the developer, in order.
        messages: the turns so far.
    """

    def __init__(self, dropped: Dropped) -> None:
        self.system: list[str] = []
        self.messages: list[Fields] = []
        self._dropped = dropped
        self._shown: list[Fields] = []  # images of tools, for the user's next turn

    def add(self, item: Fields, path: str) -> None:
        """The next item. Raises InvalidRequestBodyError or ChainedConversationError; the client's fault."""
        kind = item.get("type") or ("message" if "role" in item else None)
        kind = require(kind, str, f"{path}.type")
        if kind == _NOT_KEPT:
            raise ChainedConversationError(field=_NOT_KEPT, param=path)
        if carried := _ITEMS.get(kind):
            self._dropped.note_rest(item, carried, "input", kind)
        match kind:
            case "message":
                self._add_message(item, path)
            case "reasoning":
                self._add_reasoning(item, path)
            case "function_call":
                self._add_call(item, path)
            case "function_call_output":
                self._add_output(item, path)
            case _:
                self._dropped.note("input", kind)

    def finish(self) -> list[Fields]:
        """All messages, the system's first."""
        self._show()
        for message in self.messages:
            if message["content"] is None and "tool_calls" not in message:
                message["content"] = ""
        text = "\n\n".join(text for text in self.system if text)
        head = [{"role": "system", "content": text}] if text else []
        return head + self.messages

    def _add_message(self, item: Fields, path: str) -> None:
        role = require(item.get("role"), str, f"{path}.role")
        if role not in _ROLES:
            raise invalid(f"{path}.role", f"must be one of {', '.join(_ROLES)}")
        parts = self._read_parts(item.get("content"), f"{path}.content")
        if role == "user":
            self._shown += parts
            self._show(is_turn=True)
            return
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        if any(part["type"] != "text" for part in parts):
            self._dropped.note("input", role, "image")
        if role in _SYSTEM:
            self.system.append(text)
        else:
            turn = self._turn()
            turn["content"] = (turn["content"] or "") + text

    def _add_reasoning(self, item: Fields, path: str) -> None:
        # The whole where it was shown, else its summary; what another server encrypted is of use there alone.
        thought = self._read_thought(item, "content", path)
        summary = self._read_thought(item, "summary", path)
        if thought and summary:
            self._dropped.note("input", "reasoning", "summary")
        if thought or summary:
            turn = self._turn()
            turn["reasoning_content"] = turn.get("reasoning_content", "") + (thought or summary)

    def _read_thought(self, item: Fields, name: str, path: str) -> str:
        texts = []
        for part in optional(item.get(name), list, f"{path}.{name}") or []:
            text = require(part, dict, f"{path}.{name}").get("text")
            carried = _OF_TEXT if isinstance(text, str) else ("type",)
            self._dropped.note_rest(part, carried, "input", "reasoning", name)
            texts += [text] if isinstance(text, str) else []
        return "".join(texts)

    def _add_call(self, item: Fields, path: str) -> None:
        function = {
            "name": require(item.get("name"), str, f"{path}.name"),
            "arguments": _read_arguments(item.get("arguments"), f"{path}.arguments"),
        }
        call_id = require(item.get("call_id"), str, f"{path}.call_id")
        turn = self._turn()
        turn.setdefault("tool_calls", []).append(
            {"id": call_id, "type": "function", "function": function}
        )

    def _add_output(self, item: Fields, path: str) -> None:
        parts = self._read_parts(item.get("output"), f"{path}.output")
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        call_id = require(item.get("call_id"), str, f"{path}.call_id")
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
        self._shown += [part for part in parts if part["type"] != "text"]

    def _turn(self) -> Fields:
        """The turn of the model that an item belongs to."""
        self._show()
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": None})
        return self.messages[-1]

    def _show(self, *, is_turn: bool = False) -> None:
        """Put what is shown into a turn of the user, which may be an empty one."""
        parts, self._shown = self._shown, []
        if parts or is_turn:
            is_text = len(parts) == 1 and parts[0]["type"] == "text"
            content = (parts[0]["text"] if is_text else parts) if parts else ""
            self.messages.append({"role": "user", "content": content})

    def _read_parts(self, content: object, path: str) -> list[Fields]:
        """What a message says and shows, as chat's parts; a string is short for one text."""
        if content is None or isinstance(content, str):
            return [{"type": "text", "text": content}] if content else []
        parts: list[Fields] = []
        for number, part in enumerate(require(content, list, path)):
            at = f"{path}.{number}"
            parts += self._read_part(require(part, dict, at), at)
        return parts

    def _read_part(self, part: Fields, path: str) -> list[Fields]:
        kind = require(part.get("type"), str, f"{path}.type")
        if carried := _PARTS.get(kind):
            self._dropped.note_rest(part, carried, "input", kind)
        if field := _TEXTS.get(kind):
            text = require(part.get(field), str, f"{path}.{field}")
            return [{"type": "text", "text": text}] if text else []
        match kind:
            case "input_image":
                return [_read_image(part, path)]
            case "input_file":
                file = {name: value for name, value in part.items() if name != "type"}
                return [{"type": "file", "file": file}]
            case "input_audio":
                return [part]
            case _:
                self._dropped.note("input", kind)
                return []


def _read_image(part: Fields, path: str) -> Fields:
    if part.get("image_url") is None:
        raise invalid(path, "has no `image_url`; files are not kept here, so an id cannot be read")
    url = require(part["image_url"], str, f"{path}.image_url")
    detail = optional(part.get("detail"), str, f"{path}.detail")
    return {
        "type": "image_url",
        "image_url": {"url": url, **({"detail": detail} if detail else {})},
    }


def _read_arguments(given: object, path: str) -> str:
    """A call's arguments as the JSON string that chat wants; some clients send the object."""
    if isinstance(given, dict):
        return _ENCODE.encode(given).decode()
    return optional(given, str, path) or "{}"
