# SPDX-License-Identifier: GPL-3.0-or-later
"""The meter: what the client gets is what the neuron sent, and what it read does not depend on how the bytes were cut."""

from itertools import count, pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_core import sse
from cortex_core.errors import UpstreamConnectionError, UpstreamProtocolError
from cortex_core.openai import Usage
from cortex_gateway.dialects.openai_chat import OPENAI_CHAT
from cortex_gateway.dialects.openai_completions import OPENAI_COMPLETIONS
from cortex_gateway.usage import Meter


def event(delta: str, finish: str = "null") -> bytes:
    return sse.write_data(
        b'{"choices":[{"delta":%b,"finish_reason":%b}]}' % (delta.encode(), finish.encode())
    )


ROLE = event('{"role":"assistant","content":""}')
ONE = event('{"content":"one"}')
TWO = event('{"content":" two"}')
FINISH = event("{}", '"stop"')
LAST = event('{"content":"!"}', '"stop"')
COUNTS = b'{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}'
COMMENT = b": usage " + COUNTS + b"\n\n"
CHUNK = sse.write_data(b'{"choices":[],"usage":' + COUNTS + b"}")
ALIVE = b": keep-alive\n\n"
SPACED = b"".join(
    event.replace(b":", b": ").replace(b",", b", ").replace(b"data: ", b"data:")
    for event in (ONE, TWO, FINISH, CHUNK)
)
# As Jackson writes JSON: a space on both sides of the colon.
WIDE = b"".join(
    event.replace(b'":', b'" : ').replace(b",", b", ") for event in (ROLE, ONE, TWO, FINISH, CHUNK)
)
WIDE_ERROR = sse.write_data(b'{"error" : {"message" : "m", "code" : "engine_died"}}')
ERROR = sse.write_data(b'{"error":{"message":"m","type":"api_error","code":"engine_died"}}')
USAGE = Usage(prompt_tokens=7, completion_tokens=3, total_tokens=10)


class Read(msgspec.Struct, frozen=True):
    """What is known after a stream."""

    out: bytes
    usage: Usage | None = None
    deltas: int = 0
    error_code: str | None = None
    has_content: bool = True


def make_meter(chat: bool = True) -> Meter:
    dialect = OPENAI_CHAT if chat else OPENAI_COMPLETIONS
    ticks = count(1)
    return dialect.meter("the node", lambda: float(next(ticks)))


def read(pieces: list[bytes], chat: bool = True) -> Read:
    meter = make_meter(chat)
    out = b"".join([meter.feed(piece) for piece in pieces]) + meter.close()
    return Read(out, meter.usage, meter.deltas, meter.error_code, meter.first_s is not None)


def check(stream: bytes, expected: Read, chat: bool = True) -> None:
    """Whole, cut at every position, and byte by byte."""
    assert read([stream], chat) == expected
    for cut in range(1, len(stream)):
        assert read([stream[:cut], stream[cut:]], chat) == expected, cut
    assert read([stream[i : i + 1] for i in range(len(stream))], chat) == expected
    by_event = [part + b"\n\n" for part in stream.split(b"\n\n")[:-1]]
    if b"".join(by_event) == stream:
        assert read(by_event, chat) == expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (ROLE + ONE + TWO + FINISH, Read(b"", None, 2)),
        (ROLE + ONE + TWO + LAST, Read(b"", None, 3)),
        (ROLE + ONE + FINISH + CHUNK, Read(b"", USAGE, 1)),
        (ROLE + ALIVE + ONE + ALIVE + FINISH, Read(b"", None, 1)),
        (ROLE + FINISH, Read(b"", None, 0, None, False)),
        (ROLE + event('{"reasoning_content":"hm"}') + FINISH, Read(b"", None, 1)),
        (event('{"reasoning":"hm"}') + FINISH, Read(b"", None, 1)),
        (event('{"tool_calls":[{"index":0}]}') + FINISH, Read(b"", None, 1)),
        (ONE + ERROR, Read(b"", None, 1, "engine_died")),
        (event(r'{"content":"\"usage\": [DONE] \"error\":"}') + FINISH, Read(b"", None, 1)),
        (event('{"content":"\u2028"}') + FINISH, Read(b"", None, 1)),
        (b"data: no json\n\n" + ONE + FINISH, Read(b"", None, 1)),
        (ONE + b'data: {"error":"no memory"}\n\n', Read(b"", None, 1, "unknown")),
        (SPACED, Read(b"", USAGE, 2)),
        (WIDE, Read(b"", USAGE, 2)),
        (ONE + WIDE_ERROR, Read(b"", None, 1, "engine_died")),
        (ONE + event('{"content":"finish_reason"}') + FINISH, Read(b"", None, 2)),
        (event('{"content":"a"}', '""') + TWO + FINISH, Read(b"", None, 2)),
        (
            ONE + FINISH + CHUNK.replace(b'"completion_tokens":3', b'"completion_tokens":null'),
            Read(b"", Usage(prompt_tokens=7, total_tokens=10), 1),
        ),
        (event('{"tool_calls":[{"index":0}]}') + event("{}", '"tool_calls"'), Read(b"", None, 1)),
        (ONE + FINISH + TWO.replace(b'{"delta"', b'{"index":1,"delta"') + LAST, Read(b"", None, 3)),
        (ONE + FINISH + event('{"content":""}'), Read(b"", None, 2)),
    ],
)  # fmt: skip
def test_a_stream_passes_as_it_is_and_is_read_at_any_cut(stream: bytes, expected: Read) -> None:
    whole = stream + sse.DONE
    check(whole, msgspec.structs.replace(expected, out=whole))


@pytest.mark.parametrize("where", range(5))
def test_the_neuron_s_comment_is_taken_out_at_any_cut(where: int) -> None:
    events = [ROLE, ONE, TWO, FINISH]
    rest = b"".join(events) + sse.DONE
    stream = b"".join([*events[:where], COMMENT, *events[where:], sse.DONE])
    check(stream, Read(rest, USAGE, 2))


def test_a_comment_that_cannot_be_read_is_taken_out_and_deltas_count() -> None:
    check(ONE + FINISH + b": usage {oops\n\n" + sse.DONE, Read(ONE + FINISH + sse.DONE, None, 1))


def test_other_line_ends_pass_too() -> None:
    for end in (b"\r\n", b"\r"):
        stream = (ROLE + ONE + TWO + FINISH + sse.DONE).replace(b"\n", end)
        check(stream, Read(stream, None, 2))
        comment = (LAST + COMMENT + sse.DONE).replace(b"\n", end)
        check(comment, Read((LAST + sse.DONE).replace(b"\n", end), USAGE, 1))


def test_completions_count_their_texts() -> None:
    def text(said: str, finish: str = "null") -> bytes:
        return sse.write_data(
            f'{{"choices":[{{"text":"{said}","finish_reason":{finish}}}]}}'.encode()
        )

    stream = text("") + text("a") + text("b") + text("", '"length"') + CHUNK + sse.DONE
    check(stream, Read(stream, USAGE, 2), chat=False)


PARTS = [ROLE, ONE, TWO, FINISH, LAST, ALIVE, CHUNK, COMMENT, ERROR, event('{"content":"\\u00e9"}')]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PARTS), max_size=12),
    st.lists(st.integers(0, 2000), max_size=8),
    st.data(),
)
def test_any_stream_at_any_cuts_is_read_alike(
    parts: list[bytes], cuts: list[int], data: st.DataObject
) -> None:
    whole = [*parts, FINISH, sse.DONE]
    stream = b"".join(whole)
    ends = [sum(map(len, whole[:index])) for index in range(len(whole))]
    expected = read([stream])
    assert expected.out == b"".join(part for part in whole if part != COMMENT)
    # anywhere, and between events alone, as they mostly come
    for chosen in (
        [cut % (len(stream) + 1) for cut in cuts],
        data.draw(st.sets(st.sampled_from(ends))),
    ):
        at = sorted({0, *chosen, len(stream)})
        assert read([stream[a:b] for a, b in pairwise(at)]) == expected


@pytest.mark.parametrize(
    ("pieces", "deltas"),
    [
        ([ONE, TWO + COMMENT + TWO], 3),
        ([ONE, TWO.replace(b"\n", b"\r") + COMMENT], 2),
        ([ONE, TWO + ALIVE + TWO], 3),
    ],
)
def test_a_chunk_that_is_not_all_content_is_looked_into(pieces: list[bytes], deltas: int) -> None:
    expected = b"".join(pieces).replace(COMMENT, b"") + FINISH + sse.DONE
    found = read([*pieces, FINISH + sse.DONE])
    assert (found.out, found.deltas) == (expected, deltas)


def test_an_event_of_two_lines_stays_in_order_at_any_cut() -> None:
    two_lines = b'data: {"choices":[],\ndata: "x":1}\n\n'
    for cut in range(len(two_lines)):
        pieces = [ONE, two_lines[:cut], two_lines[cut:], FINISH, sse.DONE]
        assert read(pieces).out == ONE + two_lines + FINISH + sse.DONE


@pytest.mark.parametrize("rest", [b"", ONE, ONE[:9], b"data: [DON"])
def test_a_stream_without_done_is_broken_and_half_an_event_is_kept_back(rest: bytes) -> None:
    meter = make_meter()
    out = meter.feed(ROLE + ONE + rest)
    assert out == ROLE + ONE + (rest if rest == ONE else b"")
    with pytest.raises(UpstreamProtocolError, match=r"ended without \[DONE\]"):
        meter.close()


def test_done_without_its_empty_line_is_an_end() -> None:
    check(LAST + b"data: [DONE]\n", Read(LAST + b"data: [DONE]\n", None, 1))


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    "stream",
    [b"", ROLE, ONE + TWO, ONE + CHUNK, ONE + COMMENT, SPACED.replace(b'"stop"', b"null"),
     WIDE.replace(b'"stop"', b"null"), ONE + event("{}", '""'), ONE + b'data: {"finish_reason":"stop"\n\n',
     event(r'{"content":"\"finish_reason\":\"stop\""}')],
)  # fmt: skip
def test_done_without_a_finish_reason_is_no_end_at_any_cut(stream: bytes, chat: bool) -> None:
    whole = stream + sse.DONE
    for cut in range(len(whole) + 1):
        meter = make_meter(chat)
        out = meter.feed(whole[:cut]) + meter.feed(whole[cut:])
        with pytest.raises(UpstreamProtocolError, match="ended without a finish reason") as caught:
            meter.close()
        assert out == stream.replace(COMMENT, b""), cut
        assert meter.fail(caught.value).endswith(b"}\n\n" + sse.DONE)


def test_a_finish_of_completions_is_one_too() -> None:
    stream = sse.write_data(b'{"choices":[{"text":"a","finish_reason":"length"}]}') + sse.DONE
    check(stream, Read(stream, None, 1), chat=False)


def test_a_break_becomes_an_error_event_and_the_regular_end() -> None:
    meter = make_meter()
    assert meter.feed(ONE + TWO[:5]) == ONE
    failed = meter.fail(UpstreamConnectionError(upstream="the node", reason="cut"))
    error, done, rest = failed.split(b"\n\n")
    assert (
        msgspec.json.decode(error.removeprefix(b"data: "))["error"]["code"]
        == "upstream_connection_error"
    )
    assert (done, rest) == (b"data: [DONE]", b"")
    assert meter.error_code == "upstream_connection_error"


def test_a_break_after_the_end_is_none() -> None:
    meter = make_meter()
    meter.feed(LAST + sse.DONE)
    assert meter.fail(UpstreamConnectionError(upstream="the node", reason="cut")) == b""
    assert meter.error_code is None


def test_the_first_content_is_not_the_role_and_the_last_is_not_the_end() -> None:
    meter = make_meter()
    for chunk in (ROLE, ALIVE, ONE, TWO, LAST, CHUNK, sse.DONE):
        meter.feed(chunk)
    assert (meter.first_s, meter.last_s) == (1.0, 3.0)
    # 3 tokens, the first of which opens the window of 2 s
    assert meter.tokens_per_s == 1.0


@pytest.mark.parametrize("chunks", [[], [ROLE], [ONE], [ONE + TWO]])
def test_a_rate_needs_a_window(chunks: list[bytes]) -> None:
    meter = OPENAI_CHAT.meter("the node", lambda: 5.0)
    for chunk in chunks:
        meter.feed(chunk)
    assert meter.tokens_per_s is None


@pytest.mark.parametrize(
    ("body", "usage", "error_code"),
    [
        (b'{"usage":' + COUNTS + b"}", USAGE, None),
        (b'{"choices":[]}', None, None),
        (b'{"usage":null}', None, None),
        (b'{"error":{"code":"queue_full"}}', None, "queue_full"),
        (b'{"error":{"code":400}}', None, "400"),
        (b'{"error":{}}', None, "unknown"),
        (b'{"error":"text"}', None, "unknown"),
        (b"3.14", None, None),
    ],
)
def test_a_whole_answer_passes_as_it_is_and_is_read(
    body: bytes, usage: Usage | None, error_code: str | None
) -> None:
    meter = make_meter()
    assert meter.whole(200, body) == (200, body)
    assert (meter.usage, meter.error_code) == (usage, error_code)


@pytest.mark.parametrize("status", [200, 404, 502])
@pytest.mark.parametrize("body", [b"<html>502 Bad Gateway</html>", b"\xff", b"", b'{"usage":'])
def test_what_is_no_json_is_no_answer_whatever_its_status(status: int, body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError, match=f"status {status}"):
        make_meter().whole(status, body)


def test_tokens_are_the_reported_ones_and_deltas_without_them() -> None:
    meter = make_meter()
    meter.feed(ONE + TWO)
    assert meter.completion_tokens == 2
    meter.feed(sse.write_data(b'{"usage":{"prompt_tokens":null,"completion_tokens":null}}'))
    assert (meter.prompt_tokens, meter.completion_tokens) == (0, 2)
    meter.feed(COMMENT)
    assert meter.completion_tokens == 3


@pytest.mark.slow
def test_an_event_without_end_is_the_upstream_s_fault() -> None:
    meter = make_meter()
    with pytest.raises(UpstreamProtocolError, match="an event of more than"):
        meter.feed(b"data: " + b"x" * (64 * 1024 * 1024))


def test_ordinary_chunks_are_not_even_copied() -> None:
    meter = make_meter()
    meter.feed(ONE)
    chunk = TWO + ONE
    assert meter.feed(chunk) is chunk
