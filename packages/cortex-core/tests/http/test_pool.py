# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool, on real sockets and each event loop: what is kept, what is closed, and what is never sent twice."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from cortex_core.errors import (
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from cortex_core.http.address import Address
from cortex_core.http.client import read_all
from cortex_core.http.headers import Headers
from cortex_core.http.pool import Pool

Speak = Callable[["Heard"], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LONG = b"x" * 16_000_000  # more than the sockets' buffers hold


class Heard:
    """One connection as the upstream has it."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.asked: list[bytes] = []
        self.left = asyncio.Event()

    async def request(self) -> bytes:
        """The next request, whole."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        self.asked.append(head + await self.reader.readexactly(length))
        return self.asked[-1]

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def until_left(self) -> None:
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.left.set()


class Upstream:
    """An upstream made of bytes: `speak` has each connection."""

    def __init__(self, speak: Speak) -> None:
        self.heard: list[Heard] = []
        self.address = Address(host="", port=0, netloc="")
        self._speak = speak

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = Heard(len(self.heard), reader, writer)
        self.heard.append(heard)
        try:
            await self._speak(heard)
        except (asyncio.IncompleteReadError, ConnectionError):
            heard.left.set()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def upstream(speak: Speak) -> AsyncIterator[Upstream]:
    made = Upstream(speak)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        server = await asyncio.start_server(
            lambda reader, writer: tasks.create_task(made.serve(reader, writer)), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        made.address = Address(host="127.0.0.1", port=port, netloc=f"127.0.0.1:{port}")
        yield made
        server.close()


@asynccontextmanager
async def pool_of(made: Upstream, **settings: Any) -> AsyncIterator[Pool]:
    pool = Pool("the node", made.address, [], **settings)
    try:
        yield pool
    finally:
        async with asyncio.timeout(5):
            await pool.close()
        assert not pool._all
        assert pool._sweeper._timer is None


async def ask(pool: Pool, method: str = "POST", body: bytes = b"{}", idle_s: float = 5) -> bytes:
    async with pool.open(method, "/x", [], body if method == "POST" else None, idle_s) as reply:
        return await read_all(reply)


async def answering(heard: Heard) -> None:
    """Answers every request."""
    while True:
        await heard.request()
        heard.say(OK)


async def test_a_request_is_written_as_it_should_be() -> None:
    async with upstream(answering) as made:
        made.address = Address(host="127.0.0.1", port=made.address.port, netloc="n:1", prefix="/v")
        pool = Pool("the node", made.address, [(b"authorization", b"Bearer s")])
        for method, body in (("GET", None), ("POST", None), ("POST", b"{}")):
            async with pool.open(method, "/p?q", [(b"X-a", b"\xe4")], body, 5) as reply:
                await read_all(reply)
        await pool.close()
    common = b"/v/p?q HTTP/1.1\r\nhost: n:1\r\nauthorization: Bearer s\r\nX-a: \xe4\r\n"
    assert made.heard[0].asked == [
        b"GET " + common + b"\r\n",
        b"POST " + common + b"content-length: 0\r\n\r\n",
        b"POST " + common + b"content-length: 2\r\n\r\n{}",
    ]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/x", [(b"a", b"b\r\nc: d")]),
        ("/x", [(b"a", b"b\nc: d")]),
        ("/x", [(b"a", b"b\r")]),
        ("/x", [(b"a\r\n", b"b")]),
        ("/x HTTP/1.1\r\nb: c\r\n\r\nGET /y", []),
        ("/x y", []),
    ],
)
async def test_nothing_makes_a_line_of_its_own(path: str, fields: Headers) -> None:
    pool = Pool("the node", Address(host="127.0.0.1", port=9, netloc="n"), [])
    with pytest.raises(UpstreamProtocolError, match="where none may be"):
        async with pool.open("GET", path, fields, None, 5):
            pass


async def test_small_writes_are_not_held_back() -> None:
    async with upstream(answering) as made, pool_of(made) as pool:
        await ask(pool)
        (connection,) = pool._idle
        assert connection._transport is not None
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_connection_is_used_again_and_the_last_one_used_first() -> None:
    async with upstream(answering) as made, pool_of(made) as pool:
        for _ in range(3):
            assert await ask(pool) == b"ok"
        assert len(made.heard) == 1
        async with (
            pool.open("GET", "/x", [], None, 5) as first,
            pool.open("GET", "/x", [], None, 5) as second,
        ):
            await read_all(first)
            await read_all(second)
        assert [len(heard.asked) for heard in made.heard] == [4, 1]
        assert await ask(pool) == b"ok"
        assert [len(heard.asked) for heard in made.heard] == [5, 1]


async def test_requests_side_by_side_get_their_own_answers() -> None:
    async def echo(heard: Heard) -> None:
        while True:
            body = (await heard.request()).partition(b"\r\n\r\n")[2]
            heard.say(CHUNKED)
            for index in range(len(body)):
                heard.say(b"1\r\n" + body[index : index + 1] + b"\r\n")
                await asyncio.sleep(0)
            heard.say(b"0\r\n\r\n")

    async with upstream(echo) as made, pool_of(made) as pool:
        for _ in range(3):
            bodies = [b"%d!" % number for number in range(40)]
            assert await asyncio.gather(*(ask(pool, body=body) for body in bodies)) == bodies
        assert len(made.heard) == len(pool._idle) == 40


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async def speak(heard: Heard) -> None:
        await heard.request()
        heard.say(OK)
        await heard.until_left()

    async with upstream(speak) as made, pool_of(made, keep_idle_s=0.02) as pool:
        await ask(pool)
        async with asyncio.timeout(5):
            await made.heard[0].left.wait()
        assert not pool._idle
        assert pool._sweeper._timer is None


async def test_a_connection_that_is_overdue_is_not_used() -> None:
    async with upstream(answering) as made, pool_of(made, keep_idle_s=0) as pool:
        await ask(pool)
        await ask(pool)
        assert len(made.heard) == 2


@pytest.mark.parametrize("taken", [b"", b"o"])
async def test_an_answer_that_was_not_read_to_its_end_ends_the_connection_at_once(
    taken: bytes,
) -> None:
    async def speak(heard: Heard) -> None:
        await heard.request()
        heard.say(CHUNKED + b"1\r\no\r\n")
        await heard.until_left()

    async with upstream(speak) as made, pool_of(made) as pool:
        async with pool.open("POST", "/x", [], b"{}", 5) as reply:
            if taken:
                assert await reply.read() == taken
        async with asyncio.timeout(1):
            await made.heard[0].left.wait()
        assert not pool._idle


async def test_an_answer_that_has_come_but_was_not_taken_ends_the_connection() -> None:
    async with upstream(answering) as made, pool_of(made) as pool:
        async with pool.open("POST", "/x", [], b"{}", 5) as reply:
            assert reply.status == 200
        assert await ask(pool) == b"ok"
        assert len(made.heard) == 2


async def test_a_closed_answer_never_reads_what_is_another_s() -> None:
    async with upstream(answering) as made, pool_of(made) as pool:
        async with pool.open("POST", "/x", [], b"{}", 5) as old:
            await read_all(old)
        async with pool.open("POST", "/x", [], b"{}", 5) as new:
            with pytest.raises(UpstreamConnectionError, match="its answer was closed"):
                await old.read()
            assert (old.status, await read_all(new)) == (200, b"ok")
        assert len(made.heard) == 1


@pytest.mark.parametrize("later", [False, True])
async def test_bytes_after_an_answer_end_the_connection(later: bool) -> None:
    said = asyncio.Event()

    async def speak(heard: Heard) -> None:
        await heard.request()
        heard.say(OK if later else OK + OK)
        if later:
            await said.wait()
            heard.say(OK)
        await heard.until_left()

    async with upstream(speak) as made, pool_of(made) as pool:
        assert await ask(pool) == b"ok"
        assert len(pool._idle) == later
        said.set()
        async with asyncio.timeout(1):
            await made.heard[0].left.wait()
        assert await ask(pool) == b"ok"
        assert len(made.heard) == 2


async def test_a_connection_that_was_closed_meanwhile_is_not_used() -> None:
    async def once(heard: Heard) -> None:
        await heard.request()
        heard.say(OK)

    async with upstream(once) as made, pool_of(made) as pool:
        for count in (1, 2, 3):
            assert await ask(pool) == b"ok"
            assert len(made.heard) == count
            async with asyncio.timeout(1):
                await asyncio.wait([connection.lost for connection in pool._all])


async def dying(heard: Heard) -> None:
    """The first connection ends at its second request; the others answer."""
    await heard.request()
    heard.say(OK)
    await heard.request()
    if heard.number:
        heard.say(OK)


async def test_a_get_on_a_connection_that_was_being_closed_is_sent_once_more() -> None:
    async with upstream(dying) as made, pool_of(made) as pool:
        for _ in range(2):
            assert await ask(pool, "GET") == b"ok"
        assert [len(heard.asked) for heard in made.heard] == [2, 1]


async def test_a_post_is_never_sent_twice() -> None:
    async with upstream(dying) as made, pool_of(made) as pool:
        assert await ask(pool) == b"ok"
        with pytest.raises(UpstreamConnectionError, match="closed without an answer"):
            await ask(pool)
        assert [len(heard.asked) for heard in made.heard] == [2]
        assert await ask(pool) == b"ok"


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_get_whose_answer_had_begun_is_not_sent_again(said: bytes) -> None:
    async def speak(heard: Heard) -> None:
        await heard.request()
        heard.say(OK)
        await heard.request()
        heard.say(said)

    async with upstream(speak) as made, pool_of(made) as pool:
        await ask(pool, "GET")
        with pytest.raises(UpstreamConnectionError, match="in the middle of an answer"):
            await ask(pool, "GET")
        assert len(made.heard) == 1


async def test_a_get_on_a_new_connection_is_sent_once() -> None:
    async def speak(heard: Heard) -> None:
        await heard.request()

    async with upstream(speak) as made, pool_of(made) as pool:
        with pytest.raises(UpstreamConnectionError, match="closed without an answer"):
            await ask(pool, "GET")
        assert len(made.heard) == 1


async def test_a_connection_that_does_not_come_about_is_an_error_in_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:  # nobody accepts them, and there is no room for more
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        pool = Pool("the node", Address(host="127.0.0.1", port=port, netloc="n"), [], connect_s=0.1)
        with pytest.raises(UpstreamConnectionError, match="no connection within 0 s"):
            await ask(pool)
        await pool.close()
        for sock in waiting:
            sock.close()


async def test_a_name_that_can_be_nobody_s_is_a_connection_error() -> None:
    pool = Pool("the node", Address(host="a" * 70, port=9, netloc="n"), [])
    with pytest.raises(UpstreamConnectionError):
        await ask(pool)


async def test_silence_before_the_answer_is_a_timeout() -> None:
    async def speak(heard: Heard) -> None:
        await heard.until_left()

    async with upstream(speak) as made, pool_of(made) as pool:
        with pytest.raises(UpstreamTimeoutError):
            await ask(pool, idle_s=0.02)
        async with asyncio.timeout(1):
            await made.heard[0].left.wait()


async def test_an_upstream_that_takes_no_more_of_a_body_is_silent() -> None:
    over = asyncio.Event()

    async def speak(heard: Heard) -> None:
        await over.wait()

    async with upstream(speak) as made, pool_of(made) as pool:
        with pytest.raises(UpstreamTimeoutError):
            await ask(pool, body=LONG, idle_s=0.05)
        over.set()


async def test_a_long_body_arrives_whole() -> None:
    async def speak(heard: Heard) -> None:
        size = len((await heard.request()).partition(b"\r\n\r\n")[2])
        heard.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%d" % (len(str(size)), size))
        await heard.until_left()

    async with upstream(speak) as made, pool_of(made) as pool:
        assert await ask(pool, body=LONG) == b"%d" % len(LONG)
        assert len(pool._idle) == 1


async def test_an_answer_before_the_body_was_sent_is_taken() -> None:
    async def speak(heard: Heard) -> None:
        await heard.reader.readuntil(b"\r\n\r\n")
        heard.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await over.wait()
        await heard.until_left()

    over = asyncio.Event()
    async with upstream(speak) as made, pool_of(made) as pool:
        async with pool.open("POST", "/x", [], LONG, 5) as reply:
            assert (reply.status, await read_all(reply)) == (413, b"no")
        over.set()
        async with asyncio.timeout(5):
            await made.heard[0].left.wait()
        assert not pool._idle


async def test_a_reader_that_is_behind_holds_its_upstream_back() -> None:
    async def speak(heard: Heard) -> None:
        await heard.request()
        heard.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(LONG))
        heard.say(LONG)
        began.set()
        await heard.writer.drain()
        drained.set()

    began, drained = asyncio.Event(), asyncio.Event()
    async with (
        upstream(speak) as made,
        pool_of(made) as pool,
        pool.open("POST", "/x", [], b"{}", 5) as reply,
    ):
        await began.wait()
        (connection,) = pool._all
        for _ in range(500):
            await asyncio.sleep(0)
        assert connection._is_paused
        assert not drained.is_set()
        assert connection._answers.unread_bytes < 600_000
        assert len(await read_all(reply)) == len(LONG)


async def dripping(heard: Heard) -> None:
    """An answer, byte by byte."""
    await heard.request()
    for byte in CHUNKED + b"2\r\nok\r\n0\r\n\r\n":
        heard.say(bytes([byte]))
        await heard.writer.drain()
        await asyncio.sleep(0)
    await heard.until_left()


async def test_a_request_that_is_cancelled_anywhere_leaves_no_connection_in_use() -> None:
    async with upstream(dripping) as made, pool_of(made) as pool:
        steps = 0
        while not pool._idle:  # that one was cancelled, if at all, when it had been read to its end
            task = asyncio.create_task(ask(pool))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert all(connection.is_usable == connection.is_done for connection in pool._all)
            steps += 1
        assert steps > 10
        assert len(pool._idle) == 1
        assert pool._idle[0].is_done


async def test_closing_ends_what_is_in_flight_and_what_comes_later() -> None:
    async def speak(heard: Heard) -> None:
        request = await heard.request()
        if b"{}" in request:
            heard.say(CHUNKED + b"1\r\no\r\n")
        asked.release()
        await heard.until_left()

    asked = asyncio.Semaphore(0)
    async with upstream(speak) as made, pool_of(made) as pool:
        tasks = [asyncio.create_task(ask(pool, body=body)) for body in (b"", b"{}")]
        for _ in tasks:
            await asked.acquire()
        await pool.close()
        for task in tasks:
            with pytest.raises(UpstreamConnectionError, match="the client was closed"):
                await task
        async with asyncio.timeout(1):
            for heard in made.heard:
                await heard.left.wait()
        with pytest.raises(UpstreamConnectionError, match="the client was closed"):
            await ask(pool)


async def test_a_pool_that_is_closed_while_it_connects_keeps_nothing() -> None:
    async with upstream(answering) as made, pool_of(made) as pool:
        task = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(UpstreamConnectionError, match="the client was closed"):
            await task
