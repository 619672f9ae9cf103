# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes between vLLM's answers and ours: reasoning, white space, usage, fields that are null. Pure.

A whole answer and a stream go through the same steps: a whole message is a stream of one delta.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from cortex_core import sse, wire
from cortex_core.openai import Usage
from neuron.host.engines.vllm_asked import Wish
from neuron.host.engines.vllm_text import Text

Fields = dict[str, Any]
Markers = tuple[str, str] | None

_DECODE = msgspec.json.Decoder()
_ENCODE = msgspec.json.Encoder()
_PREFIX, _DONE = b"data: ", b"[DONE]"


class Choice:
    """One choice of an answer, delta by delta."""

    def __init__(self, wish: Wish, markers: Markers) -> None:
        self._markers = markers if wish.thinking else None
        self._reasoning = Text(trim_start=True)
        self._content = Text()
        self._open = False
        self._calls = False

    def feed(self, delta: Fields, *, last: bool) -> Fields:
        """One delta of vLLM's as ours; empty: nothing is left of it.

        Args:
            delta: is used up.
            last: it comes with the finish reason.
        """
        reasoning = self._reasoning.feed(delta.pop("reasoning", None) or "")
        content = self._take_content(delta.pop("content", None) or "")
        calls = [_shape_call(call) for call in delta.pop("tool_calls", None) or []]
        if calls:
            self._calls = True
            self._content.flush()  # what led up to the calls is no content
        if last and not self._calls and (self._content.began or not self._reasoning.began):
            content += self._content.flush()
        out = _without_nulls(delta)
        thought = self._wrap(reasoning, ended=bool(content or calls or last))
        if reasoning and self._markers is None:
            out["reasoning_content"] = reasoning
        if thought + content:
            out["content"] = thought + content
        if calls:
            out["tool_calls"] = calls
        return out

    def read_finish(self, reason: str | None) -> str | None:
        """The finish reason: calls say so, however the client asked for them, unless they were cut off."""
        if self._calls and reason == "stop":
            return "tool_calls"
        return "stop" if reason == "tool_calls" and not self._calls else reason

    def _take_content(self, piece: str) -> str:
        # vLLM's parsers leave the line ends between the closing marker and the answer.
        self._content.trim_start = self._reasoning.began
        if self._calls and not piece.strip():
            return ""
        return self._content.feed(piece)

    def _wrap(self, reasoning: str, *, ended: bool) -> str:
        """Reasoning between its markers, for the content; nothing unless the client wants it so."""
        if self._markers is None:
            return ""
        out = ""
        if reasoning and not self._open:
            self._open = True
            out = f"{self._markers[0]}\n"
        out += reasoning
        if ended and self._open:
            self._open = False
            out += f"\n{self._markers[1]}\n\n"
        return out


def shape_chat(answer: Fields, wish: Wish, markers: Markers) -> Fields:
    """A whole chat answer of vLLM's as ours."""
    for choice in answer["choices"]:
        message = choice["message"]
        role = message.pop("role")
        known = Choice(wish, markers)
        shaped = known.feed(message, last=True)
        # Clients expect the key; null says that there is no text.
        choice["message"] = {"role": role, "content": None, **shaped}
        choice["finish_reason"] = known.read_finish(choice.get("finish_reason"))
    return shape_plain(answer)


def shape_plain(answer: Fields) -> Fields:
    """An answer without the fields that are null, but for those that OpenAI writes as null."""
    if "choices" in answer:
        answer["choices"] = [_shape_choice(choice) for choice in answer["choices"]]
    if usage := answer.get("usage"):
        answer["usage"] = shape_usage(usage)
    return _without_nulls(answer)


def shape_usage(usage: Fields) -> Fields:
    """Usage without nulls, its details too."""
    return _without_nulls(
        {k: _without_nulls(v) if isinstance(v, dict) else v for k, v in usage.items()}
    )


def _shape_call(call: Fields) -> Fields:
    """A tool call, or a part of one. Where it begins it has a text of arguments, if an empty one: clients add to it."""
    function = _without_nulls(call.get("function") or {})
    if "name" in function:
        function.setdefault("arguments", "")
    return {**_without_nulls(call), "function": function}


def _shape_choice(choice: Fields) -> Fields:
    kept = {name: choice[name] for name in ("logprobs", "finish_reason") if name in choice}
    return _without_nulls(choice) | kept


def _without_nulls(fields: Fields) -> Fields:
    return {k: v for k, v in fields.items() if v is not None}


class ChatDeltas:
    """Shapes the chunks of a chat stream, each choice for itself."""

    def __init__(self, wish: Wish, markers: Markers) -> None:
        self._wish = wish
        self._markers = markers
        self._choices: dict[int, Choice] = {}

    def __call__(self, chunk: Fields) -> Fields | None:
        """One chunk; None: nothing is left of it."""
        chunk["choices"] = [
            choice for choice in chunk["choices"] if self._shape(choice) or _has_facts(choice)
        ]
        return chunk if chunk["choices"] else None

    def _shape(self, choice: Fields) -> bool:
        delta = choice["delta"]
        if delta.get("role") and not delta.get("content"):
            return True  # the first chunk says who speaks, with an empty text
        known = self._choices.get(choice["index"])
        if known is None:
            known = self._choices[choice["index"]] = Choice(self._wish, self._markers)
        reason = choice.get("finish_reason")
        choice["delta"] = known.feed(delta, last=reason is not None)
        choice["finish_reason"] = known.read_finish(reason)
        return bool(choice["delta"])


def _has_facts(choice: Fields) -> bool:
    return any(choice.get(name) is not None for name in ("finish_reason", "logprobs", "token_ids"))


class Stream:
    """A stream of vLLM's, event by event, as ours. `shape`: what happens to a chunk that has choices."""

    def __init__(self, wish: Wish, shape: Callable[[Fields], Fields | None]) -> None:
        self._wish = wish
        self._shape = shape
        self._usage: bytes | None = None

    def feed(self, event: bytes) -> bytes:
        """One event; returns what goes to the client for it, often nothing."""
        data = event.strip().removeprefix(_PREFIX)
        if data == _DONE:
            return self._close()
        chunk = _DECODE.decode(data)
        if not chunk.get("choices"):
            return self._note_usage(chunk)
        shaped = self._shape(chunk)
        return b"" if shaped is None else sse.write_data(_ENCODE.encode(shape_plain(shaped)))

    def _note_usage(self, chunk: Fields) -> bytes:
        shaped = shape_plain(chunk)
        if usage := shaped.get("usage"):
            self._usage = _ENCODE.encode(msgspec.convert(usage, Usage))
        return sse.write_data(_ENCODE.encode(shaped)) if self._wish.usage_chunk else b""

    def _close(self) -> bytes:
        if self._wish.usage_comment and self._usage is not None:
            return wire.USAGE_COMMENT + self._usage + b"\n\n" + sse.DONE
        return sse.DONE


def read_stream_error(event: bytes) -> Fields | None:
    """The `error` object where an event is an error of vLLM's; None: it is none."""
    if not event.startswith(b'data: {"error"'):
        return None
    error: Fields = _DECODE.decode(event.strip().removeprefix(_PREFIX))["error"]
    return error
