# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP/1.1 as clients send it, well and badly: what the application sees, what goes back, and when a connection ends."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.errors import QueueFullError
from cortex_core.http import inbound, server
from cortex_core.http.exchange import Exchange, Receive, Scope, Send
from cortex_core.http.front import Front
from cortex_core.http.inbound import Inbound
from cortex_core.http.testing import (
    CLOSE,
    answer,
    ask,
    connect,
    connected,
    read_answer,
    read_body,
    sending,
    tell,
)


async def test_a_request_reaches_the_application_as_it_was_sent() -> None:
    request = b"POST /a%2Fb/%C3%A4?q=%20 HTTP/1.1\r\nHost: x\r\nX-Two: 1\r\nX-Two:  2 \r\nContent-Length: 3\r\n\r\nabc"
    async with connected(tell) as (reader, writer):
        writer.write(request)
        _, body = await read_answer(reader)
    assert msgspec.json.decode(body) == {
        "method": "POST",
        "path": "/a/b/ä",
        "query": "q=%20",
        "version": "1.1",
        "headers": [["host", "x"], ["x-two", "1"], ["x-two", "2"], ["content-length", "3"]],
        "body": "abc",
    }


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://proxied:1/a?b=c", "/a", "b=c"),
        (b"http://proxied", "/", ""),
        (b"*", "*", ""),
        (b"/%ff", "/\ufffd", ""),
    ],
)
async def test_other_forms_of_a_target_are_read(target: bytes, path: str, query: str) -> None:
    async with connected(tell) as (reader, writer):
        writer.write(b"OPTIONS " + target + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        _, body = await read_answer(reader)
    got = msgspec.json.decode(body)
    assert (got["path"], got["query"]) == (path, query)


OPEN = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = (
    b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3;note=1\r\nabc\r\n2\r\nde\r\n0\r\ntrailer: t\r\n\r\n"
)


@pytest.mark.parametrize("cut", range(1, len(CHUNKED)))
async def test_a_request_is_the_same_at_every_cut(cut: int) -> None:
    _, transport = await fed(tell, CHUNKED[:cut], CHUNKED[cut:])
    got = msgspec.json.decode(transport.written[0].partition(b"\r\n\r\n")[2])
    assert (got["body"], len(got["headers"])) == ("abcde", 2)


async def test_requests_sent_at_once_are_answered_in_their_order() -> None:
    requests = b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % n for n in range(40))
    async with connected(tell) as (reader, writer):
        writer.write(requests + CHUNKED)
        paths = [msgspec.json.decode((await read_answer(reader))[1])["path"] for _ in range(41)]
    assert paths == [*(f"/{n}" for n in range(40)), "/x"]


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", False),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n", True),
    ],
)
async def test_a_connection_lives_as_long_as_the_client_wants(head: bytes, closes: bool) -> None:
    async with connected(tell) as (reader, writer):
        for _ in range(1 if closes else 3):
            writer.write(head)
            got, _ = await read_answer(reader)
            assert (b"connection: close" in got) is closes
        if closes:
            assert await reader.read() == b""


async def test_a_client_that_leaves_is_told_to_the_application_at_once() -> None:
    began, seen = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await read_body(receive)
        began.set()
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(ConnectionResetError):
            await send(answer(b"")[0])
        seen.set()

    async with connected(app) as (_, writer):
        writer.write(CLOSE)
        await began.wait()
        writer.close()
        await seen.wait()


async def test_http2_is_handed_to_hypercorn() -> None:
    peer = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    peer.initiate_connection()
    names = {":method": "GET", ":path": "/h2", ":scheme": "http", ":authority": "x"}
    peer.send_headers(1, list(names.items()), end_stream=True)
    async with connected(tell) as (reader, writer):
        writer.write(peer.data_to_send())
        body = b""
        while True:
            events = peer.receive_data(await reader.read(65536))
            writer.write(peer.data_to_send())
            body += b"".join(e.data for e in events if isinstance(e, h2.events.DataReceived))
            if any(isinstance(event, h2.events.StreamEnded) for event in events):
                break
    got = msgspec.json.decode(body)
    assert (got["path"], got["version"]) == ("/h2", "2")


UPGRADE = b"POST /x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: other/1\r\n"


async def test_an_upgrade_that_nobody_here_serves_is_ignored_and_its_body_is_not() -> None:
    async with connected(tell) as (reader, writer):
        writer.write(UPGRADE + b"content-length: 3\r\n\r\nabc")
        got = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert b'"path":"/x"' in got
    assert b'"body":"abc"' in got


async def test_a_later_upgrade_is_served_as_if_it_were_none_where_that_is_safe() -> None:
    async with connected(tell) as (reader, writer):
        writer.write(OPEN)
        await read_answer(reader)
        writer.write(UPGRADE + b"\r\n")
        head, body = await read_answer(reader)
        assert msgspec.json.decode(body)["path"] == "/x"
        assert b"connection: close" in head
        assert await reader.read() == b""
    refused = await ask(tell, OPEN + UPGRADE + b"content-length: 3\r\n\r\nabc")
    assert b"asks for another protocol, and has a body" in refused


@asynccontextmanager
async def stoppable(app: Any, grace_s: float) -> AsyncIterator[tuple[str, Callable[[], Any]]]:
    sock = server.bind("127.0.0.1:0")
    host, port = sock.getsockname()
    stop = asyncio.Event()
    task = asyncio.create_task(server.serve(app, sock, stop, grace_s=grace_s))

    async def end() -> None:
        stop.set()
        async with asyncio.timeout(5):
            await task

    yield f"http://{host}:{port}", end
    await end()


async def test_a_stop_closes_idle_connections_and_lets_running_requests_end() -> None:
    began, release = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/slow":
            began.set()
            await release.wait()
        await tell(scope, receive, send)

    async with (
        stoppable(app, 60) as (endpoint, end),
        connect(endpoint) as (idle, ask_idle),
        connect(endpoint) as (busy, ask_busy),
    ):
        ask_idle.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await read_answer(idle)
        ask_busy.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await began.wait()
        ending = asyncio.create_task(end())
        assert await idle.read() == b""
        release.set()
        assert msgspec.json.decode((await read_answer(busy))[1])["path"] == "/slow"
        assert await busy.read() == b""
        await ending


async def test_what_does_not_end_in_time_is_cut_and_gets_no_answer_made_up() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await tell(scope, receive, send)
            return
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with stoppable(app, 0.02) as (endpoint, end), connect(endpoint) as (reader, writer):
        writer.write(CLOSE)
        await began.wait()
        await end()
        assert ended.is_set()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)


class FakeTransport(asyncio.Transport):
    """Records what it is told; loses nothing and sends nothing."""

    def __init__(self) -> None:
        super().__init__({"peername": "", "sockname": "/s"})
        self.written: list[bytes] = []
        self.end: str | None = None
        self.reads = True
        self.unsent_bytes = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.end is not None

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.written.append(b"EOF")

    def close(self) -> None:
        self.end = "closed"

    def abort(self) -> None:
        self.end = "aborted"

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


async def fed(app: Any, *parts: bytes) -> tuple[Inbound, FakeTransport]:
    """A connection to which these came, and which has done what there was to do."""
    transport = FakeTransport()
    connection = Inbound(app, transport, "http")
    for part in parts:
        connection.data_received(part)
        for _ in range(5):
            await asyncio.sleep(0)
    return connection, transport


async def test_head_and_body_leave_in_one_write_and_each_chunk_in_one() -> None:
    _, whole = await fed(sending(*answer(b"ab")), CLOSE)
    assert len(whole.written) == 1
    parts = [
        answer(b"")[0],
        *(
            {"type": "http.response.body", "body": b, "more_body": b != b""}
            for b in (b"ab", b"c", b"")
        ),
    ]
    _, streamed = await fed(sending(*parts), CLOSE)
    assert [w.rpartition(b"\r\n\r\n")[2] or w for w in streamed.written] == [
        b"2\r\nab\r\n", b"1\r\nc\r\n", b"0\r\n\r\n",
    ]  # fmt: skip


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("app", "came", "waited_s", "end"),
    [
        (tell, b"", inbound.KEEP_ALIVE_S - 1, None),
        (tell, b"", inbound.KEEP_ALIVE_S + 1, "closed"),
        (tell, OPEN, inbound.KEEP_ALIVE_S - 1, None),
        (tell, OPEN, inbound.KEEP_ALIVE_S + 1, "closed"),
        (tell, OPEN[:-2], inbound.HEAD_S - 1, None),
        (tell, OPEN[:-2], inbound.HEAD_S + 1, "closed"),
        (endless, OPEN, 1e6, None),
        (tell, b"GARBAGE\r\n", inbound.LINGER_S - 1, None),
        (tell, b"GARBAGE\r\n", inbound.LINGER_S + 1, "aborted"),
    ],
)
async def test_what_takes_too_long_is_ended(
    app: Any, came: bytes, waited_s: float, end: str | None
) -> None:
    connection, transport = await fed(app, *([came] if came else []))
    connection.sweep(asyncio.get_running_loop().time() + waited_s)
    assert transport.end == end
    await connection.stop()


@pytest.mark.parametrize(("waited_s", "end"), [(-1, None), (1, "aborted")])
async def test_a_client_that_takes_nothing_for_long_is_gone(
    waited_s: float, end: str | None
) -> None:
    connection, transport = await fed(endless, OPEN)
    connection.pause_writing()
    connection.sweep(asyncio.get_running_loop().time() + inbound.STUCK_S + waited_s)
    assert transport.end == end
    connection.resume_writing()
    connection.sweep(asyncio.get_running_loop().time() + 1e6)
    assert transport.end == end
    await connection.stop()


@pytest.mark.parametrize(
    ("unsent_bytes", "waited_s", "end"),
    [
        (0, inbound.LINGER_S + 1, "aborted"),
        (9, inbound.LINGER_S + 1, "closed"),
        (9, inbound.STUCK_S + 1, "aborted"),
    ],
)
async def test_a_connection_that_is_closed_ends_though_nobody_takes_the_rest(
    unsent_bytes: int, waited_s: float, end: str
) -> None:
    connection, transport = await fed(tell, CLOSE)
    assert transport.end == "closed"
    transport.unsent_bytes = unsent_bytes
    connection.sweep(asyncio.get_running_loop().time() + waited_s)
    assert transport.end == end


async def test_a_head_that_comes_after_long_idleness_has_its_own_time() -> None:
    connection, transport = await fed(tell, OPEN)
    now_s = asyncio.get_running_loop().time()
    connection._since_s = now_s - inbound.KEEP_ALIVE_S + 1  # idle for that long
    connection.data_received(OPEN[:10])
    connection.sweep(now_s + inbound.HEAD_S - 1)
    assert transport.end is None
    connection.sweep(now_s + inbound.HEAD_S + 1)
    assert transport.end == "closed"


async def _return(_: Exchange) -> None:
    return


async def _wait(_: Exchange) -> None:
    await asyncio.Event().wait()


async def _write(exchange: Exchange) -> None:
    await exchange.answer(200, b"{}")


async def _fail(_: Exchange) -> None:
    raise QueueFullError(model="x", waiting=1, retry_after_s=1)


@pytest.mark.parametrize("then", [_return, _wait, _write, _fail])
async def test_whatever_work_does_when_the_client_leaves_it_ends_once_and_nothing_else_is_cancelled(
    then: Callable[[Exchange], Any],
) -> None:
    ends: list[tuple[str | None, bool]] = []
    connection: Inbound

    async def handler(exchange: Exchange, body: bytes) -> None:
        connection.connection_lost(None)
        await then(exchange)

    front = Front(
        daemon="g",
        hot={"/x": handler},
        routes=[],
        on_end=lambda e, error: ends.append((error.code if error else None, e.client_gone)),
    )
    connection = Inbound(front, FakeTransport(), "http")
    connection.data_received(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
    async with asyncio.timeout(2):
        await connection.ended
    assert ends == [("queue_full" if then is _fail else None, True)]
    assert front.in_flight == 0


async def test_who_leaves_after_the_whole_answer_cancels_nothing() -> None:
    steps: list[str] = []
    connection: Inbound

    async def handler(exchange: Exchange, body: bytes) -> None:
        await exchange.answer(200, b"{}")
        connection.connection_lost(None)
        await asyncio.sleep(0)
        steps.append("settled")

    front = Front(
        daemon="g", hot={"/x": handler}, routes=[], on_end=lambda e, error: steps.append("ended")
    )
    connection = Inbound(front, FakeTransport(), "http")
    connection.data_received(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
    await connection.ended
    assert steps == ["settled", "ended"]


REQUESTS = st.lists(
    st.tuples(st.sampled_from(["length", "chunked", "none"]), st.binary(max_size=40)), min_size=1, max_size=4
)  # fmt: skip


def _compose(kind: str, body: bytes) -> bytes:
    head = b"POST /p HTTP/1.1\r\nhost: x\r\n"
    if kind == "length":
        return head + b"content-length: %d\r\n\r\n" % len(body) + body
    if kind == "chunked":
        parts = b"".join(b"1\r\n%b\r\n" % body[n : n + 1] for n in range(len(body)))
        return head + b"transfer-encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"
    return head + b"\r\n"


@given(requests=REQUESTS, cuts=st.lists(st.integers(0, 600), max_size=8))
def test_however_requests_are_cut_and_follow_each_other_they_are_the_same(
    requests: list[tuple[str, bytes]], cuts: list[int]
) -> None:
    got: list[bytes | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await read_body(receive))
        for message in answer(b"ok"):
            await send(message)

    async def run() -> FakeTransport:
        whole = b"".join(_compose(*request) for request in requests)
        places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
        parts = [whole[a:b] for a, b in itertools.pairwise(places)]
        return (await fed(app, *parts, b""))[1]

    transport = asyncio.run(run())
    assert got == [body if kind != "none" else b"" for kind, body in requests]
    assert len(transport.written) == len(requests)
    assert transport.end is None
