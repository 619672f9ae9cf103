# SPDX-License-Identifier: GPL-3.0-or-later
"""No block is swallowed, and no call is told that was not made."""

import json
import re

import pytest

from neuron.host.engines.vllm_calls import Call, Last, Part, Told, Whole, read_whole
from neuron.host.engines.vllm_parsers import CallFormat

FORM = CallFormat("<c>", "</c>")
F = Call("f", '{"a":1}')
G = Call("g", "{}")
# A parser of one's own, strict or not, of `<c>name arguments</c>`.
BLOCK = re.compile(r"<c>(\w*) ?(.*?)(?:</c>|$)")


def read_strictly(text: str) -> Whole:
    """Any block that is broken breaks it all."""
    found = read_freely(text)
    try:
        for call in found.calls:
            json.loads(call.arguments)
    except ValueError:
        return Whole(text)
    return found


def read_freely(text: str) -> Whole:
    """What is broken is a call too."""
    calls = tuple(Call(name, arguments) for name, arguments in BLOCK.findall(text))
    return Whole(text.partition("<c>")[0] or None, calls)


CASES: list[tuple[str, str, Whole]] = [
    ("nothing", "", Whole(None)),
    ("words", "hi", Whole("hi")),
    ("a call", '<c>f {"a":1}</c>', Whole(None, (F,))),
    ("words and calls", 'hi <c>f {"a":1}</c><c>g {}</c>', Whole("hi ", (F, G))),
    ("a broken block", "hi <c>f {</c>", Whole("hi <c>f {</c>")),
    ("a block cut off", '<c>f {"a"', Whole('<c>f {"a"')),
    ("a block cut off where it looks whole", "<c>g {}", Whole("<c>g {}")),
    ("no name", "<c> {}</c>", Whole("<c> {}</c>")),
    ("a call, then a broken block", '<c>f {"a":1}</c> <c>g {', Whole("<c>g {", (F,))),
    (
        "a call, then a broken block, then another call",
        '<c>f {"a":1}</c><c>x {</c><c>g {}</c>',
        Whole("<c>x {</c><c>g {}</c>", (F,)),
    ),
]


@pytest.mark.parametrize("read", [read_strictly, read_freely])
@pytest.mark.parametrize(("said", "whole"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_is_no_sound_call_is_text(said: str, whole: Whole, read: object) -> None:
    assert callable(read)
    assert read_whole(said, read, FORM) == whole


def test_without_a_known_form_arguments_alone_tell() -> None:
    assert read_whole("x", lambda _: Whole("x", (F,)), None) == Whole("x", (F,))
    assert read_whole("x", lambda _: Whole(None, (Call("f", "{"),)), None) == Whole("x")
    assert read_whole("x", lambda _: Whole(None), None) == Whole("x")


def test_calls_begin_in_order_each_with_its_name() -> None:
    told = Told()
    assert told.choose("", [Part(1, "g", ""), Part(0, None, "{")]) == [False, False]
    assert told.choose("", [Part(0, "f", ""), Part(0, None, "{")]) == [True, True]
    assert told.choose("", [Part(0, "f", "")]) == [False]
    assert told.choose("", [Part(1, "g", "{}")]) == [True]


SAID = 'hi <c>f {"a":1}</c>'
WHOLE = Whole("hi ", (F,))
ENDS: list[tuple[str, str, list[Part], str, list[Part], str, Whole, Last]] = [
    ("all is told", "hi ", [Part(0, "f", '{"a":1}')], "", [], SAID, WHOLE, Last("", ())),
    ("nothing is", "", [], "", [], SAID, WHOLE, Last("hi ", (Part(0, "f", '{"a":1}'),))),
    ("content is", "hi ", [], "", [], SAID, WHOLE, Last("", (Part(0, "f", '{"a":1}'),))),
    (
        "the parser ends the call",
        "hi ", [Part(0, "f", '{"a"')], "", [Part(0, None, ":1}")], SAID, WHOLE,
        Last("", (Part(0, None, ":1}"),)),
    ),
    (
        "the parser does not end the call",
        "hi ", [Part(0, "f", '{"a"')], "", [], SAID, WHOLE,
        Last("", (Part(0, None, ":1}"),)),
    ),
    (
        "the parser ends the call twice",
        "hi ", [Part(0, "f", '{"a"')], "", [Part(0, None, ":1}{}")], SAID, WHOLE,
        Last("", (Part(0, None, ":1}"),)),
    ),
    (
        "the call is written with other spaces",
        "hi ", [Part(0, "f", '{"a" :')], "", [Part(0, None, "1}")], SAID, WHOLE,
        Last("", (Part(0, None, "1}"),)),
    ),
    (
        "the parser ends twice a call written with other spaces",
        "hi ", [Part(0, "f", '{"a" :1}')], "", [Part(0, None, "{}")], SAID, WHOLE,
        Last("", ()),
    ),
    (
        "a call is begun with the end alone",
        "hi ", [], "", [Part(0, "x", "{}")], "hi <c>x", Whole("hi <c>x"),
        Last("<c>x", ()),
    ),
    (
        "a second call is missing",
        "", [Part(0, "f", '{"a":1}')], "", [], '<c>f {"a":1}</c><c>g {}</c>', Whole(None, (F, G)),
        Last("", (Part(1, "g", "{}"),)),
    ),
    (
        "the second block is broken",
        "", [Part(0, "f", '{"a":1}')], "", [], '<c>f {"a":1}</c><c>g {', Whole("<c>g {", (F,)),
        Last("<c>g {", ()),
    ),
    (
        "the call is cut off, and is not made to look whole",
        "", [Part(0, "f", "")], "", [Part(0, None, "{}")], "<c>f {", Whole("<c>f {"),
        Last("<c>f {", ()),
    ),
    (
        "the call is cut off in its arguments",
        "", [Part(0, "f", '{"a"')], "", [Part(0, None, ":")], '<c>f {"a":', Whole('<c>f {"a":'),
        Last("", (Part(0, None, ":"),)),
    ),
    (
        "the parser has swallowed words",
        "h", [Part(0, "f", '{"a":1}')], "i", [], SAID, WHOLE,
        Last("i ", ()),
    ),
    (
        "words after a call",
        "", [Part(0, "f", '{"a":1}')], " bye", [], '<c>f {"a":1}</c> bye', Whole(None, (F,)),
        Last(" bye", ()),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "parts", "last_content", "last_parts", "said", "whole", "expected"),
    [c[1:] for c in ENDS],
    ids=[c[0] for c in ENDS],
)
def test_a_stream_has_in_the_end_told_it_all(
    content: str,
    parts: list[Part],
    last_content: str,
    last_parts: list[Part],
    said: str,
    whole: Whole,
    expected: Last,
) -> None:
    told = Told()
    told.choose(content, parts)
    assert told.finish(last_content, last_parts, said, whole, FORM) == expected


def test_without_a_known_form_all_of_a_broken_answer_is_text() -> None:
    told = Told()
    told.choose("", [Part(0, "f", "")])
    last = told.finish("", [Part(0, None, "{}")], '{"name": "f"', Whole('{"name": "f"'), None)
    assert last == Last('{"name": "f"', ())
