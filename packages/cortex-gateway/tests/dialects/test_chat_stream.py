# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from a stream of chat, before a dialect writes it. Every dialect's own tests have the rest."""

from typing import Any

import msgspec
import pytest

from cortex_core import sse
from cortex_core.errors import CortexError, UpstreamProtocolError
from cortex_core.openai import Usage
from cortex_gateway.dialects.chat_parts import Chunk, Stop, ToolCall
from cortex_gateway.dialects.chat_stream import ChatStream


class Read(ChatStream[str]):
    """Notes what it is told, a call by its id."""

    def __init__(self) -> None:
        super().__init__("node-1", "req-1")
        self.told: list[str] = []

    def begin(self, chunk: Chunk) -> None:
        pass

    def think(self, piece: str) -> None:
        self.told.append(f"thinks {piece}")

    def say(self, piece: str) -> None:
        self.told.append(f"says {piece}")

    def refuse(self, piece: str) -> None:
        self.told.append(f"refuses {piece}")

    def begin_call(self, piece: ToolCall, number: int) -> str:
        self.told.append(f"calls {piece.function.name} as {piece.id}, number {number}")
        return str(piece.id)

    def go_on_calling(self, call: str, piece: str) -> bool:
        self.told.append(f"{call}: {piece}")
        return True

    def keep_alive(self) -> None:
        pass

    def finish(self, stop: Stop, usage: Usage) -> None:
        self.told.append(f"{stop.finish_reason} after {usage.completion_tokens}")

    def tell_error(self, error: dict[str, Any]) -> None:
        pass

    def tell_failure(self, error: CortexError) -> None:
        pass


def chunk(delta: Any, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return sse.write_data(msgspec.json.encode({"id": "chatcmpl-1", "choices": [choice]}))


def piece(**fields: Any) -> dict[str, Any]:
    function = {name: fields.pop(name) for name in ("name", "arguments") if name in fields}
    return {"index": 0, **fields, **({"function": function} if function else {})}


STOP = chunk({}, "stop")


@pytest.mark.parametrize(
    "opening",
    [
        [piece(id="a"), piece(name="f", arguments="{")],
        [piece(id="a", name="", arguments=""), piece(id="a", name="f", arguments="{")],
        [piece(), piece(id="a", name="f", arguments="{")],
    ],
)
def test_a_call_is_told_once_it_has_a_name(opening: list[Any]) -> None:
    stream = Read()
    pieces = [*opening, piece(arguments="}")]
    stream.feed(b"".join(chunk({"tool_calls": [one]}) for one in pieces) + STOP + sse.DONE)
    assert stream.told == ["calls f as a, number 0", "a: {", "a: }", "stop after 3"]


@pytest.mark.parametrize(
    "given", [piece(id="a"), piece(id="a", name=""), piece(id="a", arguments="{}")]
)
def test_a_call_that_is_never_named_is_an_error(given: Any) -> None:
    stream = Read()
    with pytest.raises(UpstreamProtocolError, match="without a name"):
        stream.feed(chunk({"tool_calls": [given]}) + STOP + sse.DONE)
    assert stream.told == []


@pytest.mark.parametrize("again", [piece(name="time"), piece(id="a", name="get_time")])
def test_a_call_whose_name_changes_is_an_error(again: Any) -> None:
    stream = Read()
    with pytest.raises(UpstreamProtocolError, match="of `get_` that became"):
        stream.feed(chunk({"tool_calls": [piece(id="a", name="get_"), again]}))


def test_pieces_of_every_kind_stand_for_tokens_where_no_usage_is_told() -> None:
    stream = Read()
    deltas = [{"reasoning": "a"}, {"content": "b"}, {"refusal": "c"}, {"content": ""}]
    stream.feed(b"".join(map(chunk, deltas)) + STOP + sse.DONE)
    assert stream.told == ["thinks a", "says b", "refuses c", "stop after 3"]


def test_a_finish_reason_that_is_empty_is_none() -> None:
    stream = Read()
    stream.feed(chunk({"content": "a"}, "") + chunk({"content": "b"}, "") + sse.DONE)
    assert stream.told == ["says a", "says b"]
    stream.feed(STOP + sse.DONE)
    assert stream.told[2:] == ["stop after 2"]


def test_a_usage_that_does_not_count_the_answer_leaves_its_pieces() -> None:
    stream = Read()
    usage = {"prompt_tokens": 9, "completion_tokens": None, "total_tokens": None}
    told = sse.write_data(msgspec.json.encode({"choices": [], "usage": usage}))
    stream.feed(chunk({"content": "a"}) + STOP + told + sse.DONE)
    assert stream.told == ["says a", "stop after 1"]
