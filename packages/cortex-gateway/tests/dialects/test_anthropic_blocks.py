# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import msgspec
import pytest

from cortex_core import sse
from cortex_gateway.dialects.anthropic_blocks import Blocks, Call


def put(pieces: list[tuple[str, str]]) -> str:
    """What becomes of pieces; `0` and `1` are calls. Each block in brackets, its deltas apart by bars."""
    calls = {name: Call(f"call_{name}", f"f{name}") for name in "01"}
    blocks = Blocks()
    for target, piece in pieces:
        assert blocks.put(calls.get(target, target), piece)
    blocks.finish()
    return "".join(shorten(event) for event in blocks.out)


def shorten(raw: bytes) -> str:
    event: Any = msgspec.json.decode(sse.read_event(raw).data or b"")
    match event["type"]:
        case "content_block_start":
            block = event["content_block"]
            return f"{event['index']}[{block.get('name', block['type'])}"
        case "content_block_delta":
            return "|" + str(list(event["delta"].values())[1])
        case _:
            return "]"


@pytest.mark.parametrize(
    ("pieces", "events"),
    [
        ([], ""),
        ([("text", "a"), ("text", "b")], "0[text|a|b]"),
        ([("thinking", "h"), ("text", "a")], "0[thinking|h|Y29ydGV4]1[text|a]"),
        (
            [("text", "a"), ("thinking", "h"), ("text", "b")],
            "0[text|a]1[thinking|h|Y29ydGV4]2[text|b]",
        ),
        # One after the other: nothing waits.
        ([("0", '{"a":'), ("0", "1}"), ("1", "{}")], '0[f0|{"a":|1}]1[f1|{}]'),
        ([("0", '{"a":"}'), ("0", '"}'), ("text", "a")], '0[f0|{"a":"}|"}]1[text|a]'),
        # Two at once: the second waits until the first is complete.
        ([("0", "{"), ("1", "{"), ("1", "}"), ("0", "}")], "0[f0|{|}]1[f1|{|}]"),
        ([("0", "{"), ("1", "{"), ("0", "}"), ("1", "}")], "0[f0|{|}]1[f1|{|}]"),
        (
            [("0", "{"), ("1", "{"), ("text", "a"), ("0", "}"), ("1", "}")],
            "0[f0|{|}]1[f1|{|}]2[text|a]",
        ),
        ([("0", "{"), ("text", "a"), ("1", "{}"), ("0", "}")], "0[f0|{|}]1[text|a]2[f1|{}]"),
        # A brace that ends a piece is not the end of the arguments.
        ([("0", '{"a":{}'), ("1", "{}"), ("0", "}")], '0[f0|{"a":{}|}]1[f1|{}]'),
        # Cut off: what has waited is told at the end.
        ([("0", "{"), ("1", "{"), ("text", "a")], "0[f0|{]1[f1|{]2[text|a]"),
        # No arguments.
        ([("0", ""), ("1", "{}")], "0[f0]1[f1|{}]"),
        ([("0", "nu"), ("0", "ll"), ("1", "{}")], "0[f0]1[f1|{}]"),
        ([("0", " "), ("0", "{}")], "0[f0| {}]"),
        # No object: told as one at its end, and what comes meanwhile waits.
        ([("0", "nul"), ("0", "{}")], '0[f0|{"INVALID_JSON":"nul{}"}]'),
        (
            [("0", '"a'), ("text", "b"), ("0", '"}'), ("1", "{}")],
            '0[f0|{"INVALID_JSON":"\\"a\\"}"}]1[text|b]2[f1|{}]',
        ),
        ([("0", " ["), ("0", "1]")], '0[f0|{"INVALID_JSON":" [1]"}]'),
        ([("0", "5"), ("1", "null")], '0[f0|{"INVALID_JSON":"5"}]1[f1]'),
        # White space after the end is no argument.
        ([("0", "{}"), ("1", "{}"), ("0", "\n")], "0[f0|{}]1[f1|{}]"),
        # Nested beyond what can be read: told at the end.
        ([("0", '{"a":' * 5000 + "}"), ("1", "{}")], "0[f0|" + '{"a":' * 5000 + "}]1[f1|{}]"),
    ],
)
def test_blocks_come_one_after_the_other(pieces: list[tuple[str, str]], events: str) -> None:
    assert put(pieces) == events


def test_a_complete_call_takes_nothing_more() -> None:
    blocks = Blocks()
    call = Call("call_0", "f0")
    assert blocks.put(call, "{}")
    assert blocks.put("text", "a")
    assert blocks.put(call, " ")
    assert not blocks.put(call, "{}")
