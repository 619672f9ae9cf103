# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose conversation a request is: by what clients send, else by how it began."""

import json
from typing import Any

import pytest

from cortex_gateway.routing.session import MOST_BYTES, SESSION_HEADERS, read_session

HELLO = {"role": "user", "content": "hello"}
SYSTEM = {"role": "system", "content": "be brief"}


def number(*headers: tuple[bytes, bytes], **body: Any) -> int:
    return read_session(headers, json.dumps(body).encode())


def test_a_number_is_the_same_in_every_process_and_version() -> None:
    assert number((b"x-session-id", b"one")) == 3815355558890182089


@pytest.mark.parametrize("name", SESSION_HEADERS)
def test_a_header_names_a_conversation_whatever_is_said(name: bytes) -> None:
    first = number((name, b"one"), messages=[HELLO])
    assert first == number((b"accept", b"*/*"), (name, b"one"), messages=[SYSTEM])
    assert first != number((name, b"two"), messages=[HELLO])
    assert first != number(messages=[HELLO])


def test_of_several_headers_the_one_that_means_just_that_counts() -> None:
    both = [(b"session-id", b"b"), (b"x-session-affinity", b"a")]
    assert number(*both) == number(*both[::-1]) == number((b"x-session-affinity", b"a"))


def test_an_empty_header_names_nothing() -> None:
    assert number((b"x-session-id", b""), messages=[HELLO]) == number(messages=[HELLO])


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ({"prompt_cache_key": "one"}, {"prompt_cache_key": "two"}),
        (
            {"metadata": {"user_id": '{"session_id":"one"}'}},
            {"metadata": {"user_id": '{"session_id":"two"}'}},
        ),
    ],
)
def test_a_field_names_a_conversation_whatever_is_said(field: Any, other: Any) -> None:
    assert number(**field, messages=[HELLO]) == number(**field, messages=[SYSTEM])
    assert number(**field, messages=[HELLO]) != number(**other, messages=[HELLO])


@pytest.mark.parametrize(
    "field",
    [
        {"prompt_cache_key": None},
        {"prompt_cache_key": ""},
        {"metadata": {"user_id": "somebody"}},
        {"metadata": None},
        {"metadata": {"user_id": 7}},
        {"metadata": ["session"]},
        {"user": "somebody"},
    ],
)
def test_what_names_no_conversation_is_passed_over(field: Any) -> None:
    assert number(**field, messages=[HELLO]) == number(messages=[HELLO])


def parts(*texts: str, marked: int | None = None) -> list[dict[str, Any]]:
    mark = {"cache_control": {"type": "ephemeral"}}
    return [
        {"type": "text", "text": text, **(mark if at == marked else {})}
        for at, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"messages": [HELLO]}, {"messages": [HELLO, {"role": "assistant", "content": "hi"}]}),
        (
            {"messages": [SYSTEM, HELLO]},
            {"messages": [SYSTEM, HELLO, {"role": "assistant", "content": None}, HELLO]},
        ),
        (
            {"system": "be brief", "messages": [{"role": "user", "content": parts("a", marked=0)}]},
            {
                "system": "be brief",
                "messages": [{"role": "user", "content": parts("a")}, HELLO, HELLO],
            },
        ),
        (
            {"instructions": "be brief", "input": [{"role": "user", "content": parts("a")}]},
            {
                "instructions": "be brief",
                "input": [
                    {"role": "user", "content": parts("a")},
                    {"type": "function_call", "call_id": "1"},
                ],
            },
        ),
        ({"prompt": "x" * 600}, {"prompt": "x" * 600 + "y"}),
    ],
)
def test_a_conversation_keeps_its_number_as_it_goes_on(first: Any, later: Any) -> None:
    assert number(**first) == number(**later)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"messages": [HELLO]}, {"messages": [{"role": "user", "content": "good day"}]}),
        ({"messages": [SYSTEM, HELLO]}, {"messages": [HELLO]}),
        ({"system": "a", "messages": [HELLO]}, {"system": "b", "messages": [HELLO]}),
        ({"instructions": "a", "input": [HELLO]}, {"instructions": "b", "input": [HELLO]}),
        ({"prompt": "a"}, {"prompt": "b"}),
        ({"input": "a"}, {"input": "b"}),
        ({"input": ["a"]}, {"input": ["b"]}),
        (
            # the system text of an agent is longer than what is read of it
            {"messages": [{"role": "system", "content": "s" * 30_000}, HELLO]},
            {
                "messages": [
                    {"role": "system", "content": "s" * 30_000},
                    {"role": "user", "content": "good day"},
                ]
            },
        ),
    ],
)
def test_conversations_that_begin_otherwise_have_other_numbers(one: Any, two: Any) -> None:
    assert number(**one) != number(**two)


def test_of_a_long_text_its_start_is_read() -> None:
    long = "x" * MOST_BYTES
    ends = [[{"role": "user", "content": long + end}] for end in "ab"]
    assert number(messages=ends[0]) == number(messages=ends[1])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"messages": 3}', b'{"messages": [3]}', b"\xff"]
)
def test_what_cannot_be_read_has_a_number_too(body: bytes) -> None:
    assert read_session([], body) == read_session([], body)
