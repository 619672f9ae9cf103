# SPDX-License-Identifier: GPL-3.0-or-later
"""What Anthropic's content blocks are in OpenAI chat: turns to messages, blocks to parts.

| block | becomes |
|---|---|
| text | text; an unknown block that has a text is read as one |
| image | `image_url`: base64 as a `data:` URI, a URL as it is |
| document | text, with its title and context before it; its images as images. A PDF or a file id is refused |
| search_result | text, with its title and source before it; its images as images |
| tool_use | one of the message's `tool_calls`, its input as a JSON string |
| tool_result | a `tool` message before the rest of its turn; its images go with the rest |
| thinking | `reasoning_content`; its signature is not looked at |
| redacted_thinking, and what is not known | dropped, and reported |

To add one: a row here, a reader in `_READERS`. Pure.
"""

import base64
import binascii
from typing import Any

import msgspec

from cortex_gateway.dialects.anthropic_fields import Block, read_blocks
from cortex_gateway.dialects.fields import Dropped, invalid, optional, require

_ENCODE = msgspec.json.Encoder()

Message = dict[str, Any]
Part = dict[str, Any]

# What a block may hold without anything getting lost.
_CARRIED = {
    "text": ("type", "text"),
    "image": ("type", "source"),
    "document": ("type", "source", "title", "context"),
    "search_result": ("type", "source", "title", "content"),
    "thinking": ("type", "thinking", "signature"),
    "tool_use": ("type", "id", "name", "input"),
    "tool_result": ("type", "tool_use_id", "content", "is_error"),
}
_SOURCES = {
    "base64": ("type", "media_type", "data"),
    "text": ("type", "media_type", "data"),
    "url": ("type", "url"),
    "content": ("type", "content"),
}


def write_user(blocks: list[Block], dropped: Dropped) -> list[Message]:
    """A user's turn: the results of tools first, since templates want them right after the calls.

    Raises:
        InvalidRequestBodyError: a block lacks what it must have. The client's fault.
    """
    results: list[Message] = []
    shown: list[Part] = []
    rest: list[Part] = []
    for block in blocks:
        if block.kind == "tool_result":
            message, images = _read_result(block, dropped)
            results.append(message)
            shown += images
        else:
            rest += _read_parts(block, dropped, turn="user")
    parts = shown + rest
    if parts or not results:
        results.append({"role": "user", "content": _fold(parts)})
    return results


def write_assistant(blocks: list[Block], dropped: Dropped) -> Message:
    """A turn of the model: what it thought, said and called.

    Its texts are joined without anything between, as they were generated, so that the prefix cache knows them.
    """
    thought, said = "", ""
    calls = []
    for block in blocks:
        if block.kind == "thinking":
            dropped.note_rest(block.fields, _CARRIED["thinking"], "thinking")
            thought += require(block.fields.get("thinking"), str, f"{block.path}.thinking")
        elif block.kind == "tool_use":
            calls.append(_write_call(block, dropped))
        else:
            for part in _read_parts(block, dropped, turn="assistant"):
                said += part["text"]
    message: Message = {"role": "assistant", "content": said or (None if calls else "")}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def read_system(blocks: list[Block], dropped: Dropped) -> list[str]:
    """The texts of a system prompt, or of a system turn."""
    parts = [part for block in blocks for part in _read_parts(block, dropped, turn="system")]
    return [part["text"] for part in parts]


def _fold(parts: list[Part]) -> str | list[Part]:
    """A lone text as a string: every template takes that, and it is the same however the client wrote it."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _read_parts(block: Block, dropped: Dropped, turn: str) -> list[Part]:
    """The parts of a block that says or shows something; none where it cannot be carried in this turn."""
    if block.kind in ("tool_use", "tool_result", "thinking"):
        raise invalid(block.path, f"is a `{block.kind}` block, which a turn of {turn} cannot hold")
    if turn != "user" and block.kind in ("image", "document"):
        dropped.note(turn, block.kind)
        return []
    reader = _READERS.get(block.kind)
    if reader is not None:
        dropped.note_rest(block.fields, _CARRIED[block.kind], block.kind)
        parts = reader(block, dropped)
        if turn != "user" and any(part["type"] != "text" for part in parts):
            dropped.note(turn, "image")
            parts = [part for part in parts if part["type"] == "text"]
        return parts
    if isinstance(block.fields.get("text"), str):
        dropped.note_rest(block.fields, _CARRIED["text"], block.kind)
        return _text(block.fields["text"])
    dropped.note(block.kind)
    return []


def _text(text: str) -> list[Part]:
    return [{"type": "text", "text": text}] if text else []


def _read_text(block: Block, _dropped: Dropped) -> list[Part]:
    return _text(require(block.fields.get("text"), str, f"{block.path}.text"))


def _read_source(block: Block, dropped: Dropped) -> tuple[dict[str, Any], str, str]:
    """Where an image or a document comes from, of which kind that is, and where in the request it stands."""
    path = f"{block.path}.source"
    source = require(block.fields.get("source"), dict, path)
    kind = require(source.get("type"), str, f"{path}.type")
    dropped.note_rest(source, _SOURCES.get(kind, ()), block.kind, "source")
    return source, kind, path


def _read_image(block: Block, dropped: Dropped) -> list[Part]:
    source, kind, path = _read_source(block, dropped)
    match kind:
        case "base64":
            media_type = require(source.get("media_type"), str, f"{path}.media_type")
            url = f"data:{media_type};base64,{require(source.get('data'), str, f'{path}.data')}"
        case "url":
            url = require(source.get("url"), str, f"{path}.url")
        case other:
            raise invalid(path, f"is of type `{other}`; images are read as `base64` or `url` only")
    return [{"type": "image_url", "image_url": {"url": url}}]


def _read_document(block: Block, dropped: Dropped) -> list[Part]:
    source, kind, path = _read_source(block, dropped)
    head = [
        optional(block.fields.get(name), str, f"{block.path}.{name}")
        for name in ("title", "context")
    ]
    if kind == "content":
        body = _read_inner(source.get("content"), f"{path}.content", dropped)
    else:
        body = _text(_document_text(source, kind, path))
    texts = [text for text in head if text]
    if body and body[0]["type"] == "text":
        texts.append(body.pop(0)["text"])
    return _text("\n\n".join(texts)) + body


def _document_text(source: dict[str, Any], kind: str, path: str) -> str:
    media_type = str(source.get("media_type", "text/plain"))
    if kind not in ("text", "base64") or not media_type.startswith("text/"):
        told = f"`{kind}`" if kind != "base64" else f"`{kind}` ({media_type})"
        raise invalid(
            path, f"is of type {told}, which cannot be read here; send the document's text"
        )
    data = require(source.get("data"), str, f"{path}.data")
    if kind == "text":
        return data
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise invalid(f"{path}.data", "is not the base64 of a text in UTF-8") from None


def _read_inner(content: object, path: str, dropped: Dropped) -> list[Part]:
    """What a document holds: texts and images, and never another document, which could go on without end."""
    parts: list[Part] = []
    for block in read_blocks(content, path):
        if block.kind in ("text", "image"):
            parts += _read_parts(block, dropped, turn="user")
        else:
            dropped.note("document", block.kind)
    return parts


def _read_search_result(block: Block, dropped: Dropped) -> list[Part]:
    head = [
        require(block.fields.get(name), str, f"{block.path}.{name}") for name in ("title", "source")
    ]
    body = _read_inner(block.fields.get("content"), f"{block.path}.content", dropped)
    texts = [part["text"] for part in body if part["type"] == "text"]
    images = [part for part in body if part["type"] != "text"]
    return _text("\n".join([*head, "", *texts])) + images


_READERS = {
    "text": _read_text,
    "image": _read_image,
    "document": _read_document,
    "search_result": _read_search_result,
}


def _read_result(block: Block, dropped: Dropped) -> tuple[Message, list[Part]]:
    """A tool's result as its message, and the images that message cannot hold."""
    dropped.note_rest(block.fields, _CARRIED["tool_result"], "tool_result")
    call_id = require(block.fields.get("tool_use_id"), str, f"{block.path}.tool_use_id")
    content = block.fields.get("content")
    parts: list[Part] = []
    for inner in read_blocks([] if content is None else content, f"{block.path}.content"):
        parts += _read_parts(inner, dropped, turn="user")
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    if optional(block.fields.get("is_error"), bool, f"{block.path}.is_error"):
        text = text if text.startswith("Error:") else f"Error: {text}" if text else "Error:"
    images = [part for part in parts if part["type"] != "text"]
    return {"role": "tool", "tool_call_id": call_id, "content": text}, images


def _write_call(block: Block, dropped: Dropped) -> dict[str, Any]:
    dropped.note_rest(block.fields, _CARRIED["tool_use"], "tool_use")
    given = optional(block.fields.get("input"), dict, f"{block.path}.input")
    return {
        "id": require(block.fields.get("id"), str, f"{block.path}.id"),
        "type": "function",
        "function": {
            "name": require(block.fields.get("name"), str, f"{block.path}.name"),
            "arguments": _ENCODE.encode(given or {}).decode(),
        },
    }
