# SPDX-License-Identifier: GPL-3.0-or-later
"""The events of a streamed response: its output items as they open, grow and close, numbered. Pure.

    output_item.added, (content_part.added, output_text.delta…, output_text.done, content_part.done), output_item.done

Text, refusal and reasoning are items of which one is open at a time. Calls stay open until the end, since their
arguments may come to and fro. What is the same in every delta of an item is made once.
"""

from typing import Any

import msgspec

from cortex_gateway.dialects.chat_parts import is_nothing
from cortex_gateway.dialects.responses_parts import (
    whole_arguments,
    write_call,
    write_item,
    write_part,
)

Fields = dict[str, Any]

_ENCODE = msgspec.json.Encoder()

# Kind of part: what its events begin with, and the field of its last one.
_EVENTS = {
    "output_text": ("response.output_text", "text"),
    "reasoning_text": ("response.reasoning_text", "text"),
    "refusal": ("response.refusal", "refusal"),
}
_ARGUMENTS = "response.function_call_arguments"
_PART = "response.content_part"
_ITEM = "response.output_item"


class Speech:
    """An item that says or thinks something, while it is open."""

    def __init__(self, own_id: str, index: int, kind: str) -> None:
        self.kind = kind
        self._own_id = own_id
        self._index = index
        self._texts: list[str] = []
        self.id: str = self.write("in_progress")["id"]
        self.place = {"item_id": self.id, "output_index": index, "content_index": 0}

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def add(self, piece: str) -> None:
        self._texts.append(piece)

    def write(self, status: str) -> Fields:
        """The item as it is now."""
        part = write_part(self.kind, self.text) if self._texts else None
        return write_item(self._own_id, self._index, part, self.kind, status)


class Call:
    """A call, while it is open."""

    def __init__(self, own_id: str, index: int, call_id: str, name: str) -> None:
        self.index = index
        self.name = name
        self._own_id = own_id
        self._call_id = call_id
        self._pieces: list[str] = []
        self._is_said = False
        self.id: str = self.write("in_progress")["id"]
        self.place = {"item_id": self.id, "output_index": index}

    def add(self, piece: str) -> str:
        """The next piece; returns what of the arguments can be said now: nothing while they may still be `null`."""
        self._pieces.append(piece)
        if self._is_said:
            return piece
        head = "".join(self._pieces)
        self._is_said = not is_nothing(head)
        return head if self._is_said else ""

    @property
    def rest(self) -> str:
        """What of the arguments was never said."""
        return "" if self._is_said else self.arguments

    @property
    def arguments(self) -> str:
        return whole_arguments("".join(self._pieces))

    def write(self, status: str) -> Fields:
        """The item as it is now."""
        given = self.arguments if self._pieces else ""
        return write_call(self._own_id, self.index, self._call_id, self.name, given, status)


class Events:
    """Writes the events of one response.

    Args:
        out: where they go.
        shell: the response as it begins; its fields are told with the first events and the last.
        own_id: what all ids are made of.
    """

    def __init__(self, out: list[bytes], shell: Fields, own_id: str) -> None:
        self._out = out
        self._shell = shell
        self._own_id = own_id
        self._number = 0
        self._count = 0
        self._closed: dict[int, Fields] = {}
        self._speech: Speech | None = None
        self._calls: list[Call] = []
        self._delta_head = b""
        for name in ("response.created", "response.in_progress"):
            self._write(name, {"response": shell})

    def put(self, kind: str, piece: str) -> None:
        """The next piece of text, refusal or reasoning."""
        speech = self._speech
        if speech is None or speech.kind != kind:
            speech = self._open(kind)
        speech.add(piece)
        self._out.append(
            b'%b%d,"delta":%b}\n\n' % (self._delta_head, self._number, _ENCODE.encode(piece))
        )
        self._number += 1

    def call(self, call_id: str, name: str) -> Call:
        """A call begins."""
        self._close_speech("completed")
        call = Call(self._own_id, self._next_index(), call_id, name)
        self._calls.append(call)
        self._write(
            f"{_ITEM}.added", {"output_index": call.index, "item": call.write("in_progress")}
        )
        return call

    def put_arguments(self, call: Call, piece: str) -> None:
        """The next piece of a call's arguments."""
        if said := call.add(piece):
            self._write(f"{_ARGUMENTS}.delta", {**call.place, "delta": said})

    def finish(self, end: Fields, *, is_cut: bool) -> None:
        """The regular end. `end`: what is told only now, without the output; `is_cut`: what came last is not whole."""
        last = "incomplete" if is_cut else "completed"
        self._close_speech(last)
        for call in self._calls:
            self._close_call(call, last if call.index == self._count - 1 else "completed")
        output = [self._closed[index] for index in sorted(self._closed)]
        response = {**self._shell, **end, "output": output}
        self._write(f"response.{response['status']}", {"response": response})

    def fail(self, code: str, message: str, param: str | None) -> None:
        """An end in an error. What was open is told as it is."""
        self._write("error", {"code": code, "message": message, "param": param})
        output = dict(self._closed)
        if self._speech:
            output[self._speech.place["output_index"]] = self._speech.write("incomplete")
        output |= {call.index: call.write("incomplete") for call in self._calls}
        error = {"code": code, "message": message}
        told = [output[index] for index in sorted(output)]
        response = {**self._shell, "status": "failed", "error": error, "output": told}
        self._write("response.failed", {"response": response})

    def _open(self, kind: str) -> Speech:
        self._close_speech("completed")
        index = self._next_index()
        speech = self._speech = Speech(self._own_id, index, kind)
        self._write(f"{_ITEM}.added", {"output_index": index, "item": speech.write("in_progress")})
        self._write(f"{_PART}.added", {**speech.place, "part": write_part(kind, "")})
        name = f"{_EVENTS[kind][0]}.delta"
        fields = {"type": name, **speech.place, **_logprobs(kind), "sequence_number": 0}
        self._delta_head = b"event: %b\ndata: %b" % (name.encode(), _ENCODE.encode(fields)[:-2])
        return speech

    def _close_speech(self, status: str) -> None:
        speech, self._speech = self._speech, None
        if speech is None:
            return
        name, field = _EVENTS[speech.kind]
        done = {**speech.place, field: speech.text, **_logprobs(speech.kind)}
        self._write(f"{name}.done", done)
        part = write_part(speech.kind, speech.text)
        self._write(f"{_PART}.done", {**speech.place, "part": part})
        self._close_item(speech.place["output_index"], speech.write(status))

    def _close_call(self, call: Call, status: str) -> None:
        if rest := call.rest:
            self._write(f"{_ARGUMENTS}.delta", {**call.place, "delta": rest})
        done = {**call.place, "name": call.name, "arguments": call.arguments}
        self._write(f"{_ARGUMENTS}.done", done)
        item = {**call.write(status), "arguments": call.arguments}
        self._close_item(call.index, item)

    def _close_item(self, index: int, item: Fields) -> None:
        self._closed[index] = item
        self._write(f"{_ITEM}.done", {"output_index": index, "item": item})

    def _next_index(self) -> int:
        self._count += 1
        return self._count - 1

    def _write(self, name: str, fields: Fields) -> None:
        data = _ENCODE.encode({"type": name, **fields, "sequence_number": self._number})
        self._out.append(b"event: %b\ndata: %b\n\n" % (name.encode(), data))
        self._number += 1


def _logprobs(kind: str) -> Fields:
    return {"logprobs": []} if kind == "output_text" else {}
