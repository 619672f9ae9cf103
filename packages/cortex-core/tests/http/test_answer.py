# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers on one connection: any cut reads the same, and what is no answer is refused."""

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.http.answer import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    Answers,
    CutError,
    MalformedError,
)
from cortex_core.http.headers import Headers

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


class Read(NamedTuple):
    """What became of the bytes of one answer."""

    status: int
    headers: Headers
    body: bytes
    is_whole: bool
    is_reusable: bool


def read(pieces: list[bytes], method: str = "GET") -> Read:
    answers = Answers()
    answers.expect(method)
    body = b""
    for piece in pieces:
        answers.feed(piece)
        body += answers.take()
    return Read(answers.status, answers.headers, body, answers.is_whole, answers.is_reusable)


def cuts(raw: bytes) -> list[list[bytes]]:
    """Whole, in two pieces cut everywhere, and byte by byte."""
    halves = [[raw[:cut], raw[cut:]] for cut in range(1, len(raw))]
    return [[raw], *halves, [raw[i : i + 1] for i in range(len(raw))]]


LENGTH = [(b"content-length", b"2")]
TE = [(b"Transfer-Encoding", b"chunked")]
GOOD = {
    "length": ("GET", OK + b"content-length: 2\r\n\r\nab", Read(200, LENGTH, b"ab", True, True)),
    "empty": (
        "GET",
        OK + b"Content-Length:0\r\n\r\n",
        Read(200, [(b"Content-Length", b"0")], b"", True, True),
    ),
    "chunked": (
        "GET",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n",
        Read(200, TE, b"abc", True, True),
    ),
    "trailers": (
        "GET",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: 1\r\ny: 2\r\n\r\n",
        Read(200, TE, b"a", True, True),
    ),
    "until it is closed": ("GET", OK + b"\r\nab", Read(200, [], b"ab", False, False)),
    "closing": (
        "GET",
        OK + b"content-length: 2\r\nconnection: close\r\n\r\nab",
        Read(200, [*LENGTH, (b"connection", b"close")], b"ab", True, False),
    ),
    "old": (
        "GET",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nab",
        Read(200, LENGTH, b"ab", True, False),
    ),
    "old, kept": (
        "GET",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nab",
        Read(200, [*LENGTH, (b"connection", b"keep-alive")], b"ab", True, True),
    ),
    "interim": (
        "POST",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        + OK
        + b"content-length: 2\r\n\r\nab",
        Read(200, LENGTH, b"ab", True, True),
    ),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", Read(204, [], b"", True, True)),
    "304": (
        "GET",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n",
        Read(304, LENGTH, b"", True, True),
    ),
    "head": ("HEAD", OK + b"content-length: 2\r\n\r\n", Read(200, LENGTH, b"", True, False)),
    "no reason": (
        "GET",
        b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nab",
        Read(200, LENGTH, b"ab", True, True),
    ),
    "upgrade on offer": (
        "GET",
        OK + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\nab",
        Read(200, [(b"connection", b"upgrade"), (b"upgrade", b"h2c"), *LENGTH], b"ab", True, True),
    ),
}


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD.keys())
def test_an_answer_reads_the_same_at_any_cut(case: tuple[str, bytes, Read]) -> None:
    method, raw, expected = case
    for pieces in cuts(raw):
        assert read(pieces, method) == expected, pieces


@pytest.mark.parametrize(
    "name", ["length", "chunked", "trailers", "empty", "204", "304", "interim"]
)
def test_a_connection_reads_one_answer_after_the_other(name: str) -> None:
    method, raw, expected = GOOD[name]
    for pieces in cuts(raw):
        answers = Answers()
        for _ in range(3):
            answers.expect(method)
            for piece in pieces:
                answers.feed(piece)
            assert answers.is_reusable
            got = (answers.status, answers.headers, answers.take())
            assert got == (expected.status, expected.headers, expected.body)


SURPLUS = [
    b"x",
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"\r\nH",
    b"\x00",
    b"HTTP/1.1 500 No\r\nz: z\r\n\r\nzz",
]


@pytest.mark.parametrize("surplus", SURPLUS)
@pytest.mark.parametrize("name", ["length", "chunked", "204", "304", "closing", "head"])
def test_what_follows_an_answer_is_no_part_of_it_and_ends_the_connection(
    name: str, surplus: bytes
) -> None:
    method, raw, expected = GOOD[name]
    assert read([raw + surplus], method) == expected._replace(is_reusable=False)


BAD = {
    "no http": b"SSH-2.0-OpenSSH\r\n\r\n",
    "two lengths": OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
    "length beside chunks": OK + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n",
    "length that is none": OK + b"content-length: +2\r\n\r\n",
    "endless length": OK + b"content-length: 99999999999999999999\r\n\r\n",
    "chunk that is none": CHUNKED + b"zz\r\n",
    "chunk too long": CHUNKED + b"1\r\nab\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "space before the colon": OK + b"a : b\r\n\r\n",
    "folded header": OK + b"a: b\r\n c\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nab",
    "another protocol, unnamed": b"HTTP/1.1 101 Switching\r\n\r\nab",
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_what_is_no_answer_is_malformed_at_any_cut(raw: bytes) -> None:
    for pieces in cuts(raw):
        with pytest.raises(MalformedError, match=r"\w"):
            read(pieces)


def test_the_status_of_what_is_refused_is_told() -> None:
    with pytest.raises(MalformedError, match="its status is 101"):
        read([BAD["another protocol"]])


TOO_LONG = f"longer than {MAX_HEAD_BYTES // 1024} KiB"


@pytest.mark.parametrize("step", [1000, 100_000])
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (OK + b"a: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n", TOO_LONG),
        (OK + b"a: " + b"b" * 4 * MAX_HEAD_BYTES, TOO_LONG),
        (b"HTTP/1.1 200 " + b"b" * 4 * MAX_HEAD_BYTES, TOO_LONG),
        (OK + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", f"more than {MAX_HEADERS} headers"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3000, TOO_LONG),
        (b"HTTP/1.1 103 Early Hints\r\na: b\r\n\r\n" * 40_000, TOO_LONG),
        (CHUNKED + b"1\r\na\r\n0\r\n" + b"a: b\r\n" * 20_000, TOO_LONG),
        (CHUNKED + b"1\r\na\r\n0\r\na: " + b"b" * 4 * MAX_HEAD_BYTES, TOO_LONG),
        (CHUNKED + b"1;" + b"b" * 4 * MAX_HEAD_BYTES, TOO_LONG),
    ],
)
def test_headers_and_trailers_have_a_bound(raw: bytes, reason: str, step: int) -> None:
    with pytest.raises(MalformedError, match=reason):
        read([raw[start : start + step] for start in range(0, len(raw), step)])


def test_as_many_and_as_long_headers_as_may_be_are_read() -> None:
    many = OK + b"a: b\r\n" * (MAX_HEADERS - 1) + b"content-length: 0\r\n\r\n"
    assert len(read([many]).headers) == MAX_HEADERS
    long = OK + b"a: " + b"b" * (MAX_HEAD_BYTES - 100) + b"\r\ncontent-length: 0\r\n\r\n"
    for pieces in ([long], [long[:1000], long[1000:]]):
        assert read(pieces).is_whole


def test_a_long_stream_of_small_chunks_has_no_bound() -> None:
    answers = Answers()
    answers.expect("GET")
    answers.feed(CHUNKED)
    for _ in range(MAX_HEAD_BYTES):
        answers.feed(b"1\r\n")
        answers.feed(b"a")
        answers.feed(b"\r\n")
    assert answers.unread_bytes == MAX_HEAD_BYTES


@pytest.mark.parametrize("name", ["length", "chunked", "trailers", "interim", "empty"])
def test_an_answer_that_is_closed_too_early_was_cut(name: str) -> None:
    method, raw, _ = GOOD[name]
    for cut in range(len(raw)):
        answers = Answers()
        answers.expect(method)
        answers.feed(raw[:cut])
        assert answers.has_begun == (cut > 0)
        with pytest.raises(CutError, match="in the middle" if cut else "without an answer"):
            answers.close()
        assert not answers.is_whole
        answers.feed(raw[cut:])
        answers.close()
        assert answers.is_whole


@pytest.mark.parametrize("fields", [b"", b"transfer-encoding: gzip\r\n", b"connection: close\r\n"])
def test_an_answer_without_a_length_ends_when_it_is_closed(fields: bytes) -> None:
    raw = OK + fields + b"\r\nab"
    for cut in range(raw.index(b"\r\n\r\n") + 4, len(raw) + 1):
        answers = Answers()
        answers.expect("GET")
        answers.feed(raw[:cut])
        assert not answers.is_whole
        answers.close()
        assert (answers.is_whole, answers.is_reusable) == (True, False)


def test_nothing_is_expected_of_a_connection_that_has_not_been_asked() -> None:
    answers = Answers()
    assert answers.is_whole
    assert not answers.is_reusable
    answers.close()


TOKENS = st.text("abcXYZ-019", min_size=1, max_size=8).map(str.encode)
VALUES = st.text("ab 1;=,\u00e4", max_size=12).map(lambda value: value.strip().encode("latin-1"))
FIELDS = st.lists(st.tuples(TOKENS.map(lambda name: b"x-" + name), VALUES), max_size=4)


def write_fields(fields: Headers) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields)


@st.composite
def written(draw: st.DrawFn) -> tuple[bytes, Read]:
    """A valid answer, and what it says."""
    interim = b"HTTP/1.1 103 Early\r\n" + write_fields(draw(FIELDS)) + b"\r\n"
    parts = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=5))
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    status = draw(st.sampled_from([200, 201, 404, 503, 599]))
    fields = draw(FIELDS)
    body = b"".join(parts)
    match framing:
        case "length":
            fields, sent = [*fields, (b"content-length", b"%d" % len(body))], body
        case "chunked":
            extension = draw(st.sampled_from([b"", b";a", b";a=b"]))
            chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in parts)
            sent = chunks + b"0\r\n" + write_fields(draw(FIELDS)) + b"\r\n"
            fields = [(b"transfer-encoding", b"chunked"), *fields]
        case _:
            sent = body
    head = b"HTTP/1.1 %d Why\r\n%b\r\n" % (status, write_fields(fields))
    raw = interim * draw(st.integers(0, 2)) + head + sent
    ends = framing != "close"
    return raw, Read(status, fields, body, ends, ends)


@given(written(), st.lists(st.integers(0, 400), max_size=6))
def test_any_valid_answer_reads_the_same_however_it_is_cut(
    case: tuple[bytes, Read], places: list[int]
) -> None:
    raw, expected = case
    edges = [0, *sorted(min(place, len(raw)) for place in places), len(raw)]
    assert read([raw[start:end] for start, end in pairwise(edges) if start < end]) == expected
    for pieces in cuts(raw):
        assert read(pieces) == expected
