# SPDX-License-Identifier: GPL-3.0-or-later
"""Server-Sent Events at any cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core import sse

STREAM = (
    b': hello\n\ndata: {"a":"\xe2\x80\xa8"}\n\nevent: ping\r\ndata: 1\r\ndata: 2\r\n\r\n'
    b"data: x\r\rdata: [DONE]\n\n"
)
EVENTS = [
    b": hello\n\n",
    b'data: {"a":"\xe2\x80\xa8"}\n\n',
    b"event: ping\r\ndata: 1\r\ndata: 2\r\n\r\n",
    b"data: x\r\r",
    b"data: [DONE]\n\n",
]


def test_events_do_not_depend_on_chunking() -> None:
    for cut in range(len(STREAM) + 1):
        splitter = sse.Splitter()
        assert splitter.feed(STREAM[:cut]) + splitter.feed(STREAM[cut:]) == EVENTS, cut
        assert splitter.flush() == b""


def test_events_come_out_byte_by_byte() -> None:
    splitter = sse.Splitter()
    events = [e for i in range(len(STREAM)) for e in splitter.feed(STREAM[i : i + 1])]
    assert events == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_events_do_not_depend_on_several_cuts(cuts: list[int]) -> None:
    splitter = sse.Splitter()
    edges = [0, *sorted(cuts), len(STREAM)]
    events = [
        e for start, end in itertools.pairwise(edges) for e in splitter.feed(STREAM[start:end])
    ]
    assert events == EVENTS


def test_what_was_cut_off_is_what_flush_gives() -> None:
    splitter = sse.Splitter()
    assert splitter.feed(b"data: 1\n\ndata: 2\n") == [b"data: 1\n\n"]
    assert splitter.flush() == b"data: 2\n"
    assert splitter.flush() == b""


def test_an_event_that_does_not_end_is_bounded() -> None:
    splitter = sse.Splitter(max_event_bytes=10)
    splitter.feed(b"data: 5678")
    with pytest.raises(sse.TooLongError):
        splitter.feed(b"9")


@pytest.mark.parametrize(
    ("raw", "event"),
    [
        (b"data: a\n\n", sse.Event(b"a")),
        (b"data:a\ndata: b\n\n", sse.Event(b"a\nb")),
        (b"data:  a\n\n", sse.Event(b" a")),
        (b"event: e\ndata\n\n", sse.Event(b"", b"e")),
        (b": usage {}\n\n", sse.Event(None, comment=b"usage {}")),
        (b"id: 3\n\n", sse.Event(None)),
        (b'data: {"x":"\xe2\x80\xa8"}\r\n\r\n', sse.Event(b'{"x":"\xe2\x80\xa8"}')),
    ],
)
def test_an_event_reads_as_the_standard_says(raw: bytes, event: sse.Event) -> None:
    assert sse.read_event(raw) == event


def test_what_is_written_reads_back() -> None:
    assert sse.read_event(sse.write_data(b"{}")) == sse.Event(b"{}")
    assert sse.read_event(sse.write_comment(b"ping")) == sse.Event(None, comment=b"ping")


def test_a_splitter_tells_whether_it_keeps_a_part_back() -> None:
    splitter = sse.Splitter()
    for chunk, is_waiting in ((b"", False), (b"data: a", True), (b"\n\n", False), (b"\r", True)):
        splitter.feed(chunk)
        assert splitter.is_waiting is is_waiting
    splitter.flush()
    assert not splitter.is_waiting
