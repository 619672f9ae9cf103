# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection, step by step: what is written when, what is read when, and what ends it."""

import asyncio
import errno
import math
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from cortex_core.errors import (
    FleetError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from cortex_core.http.connection import MAX_UNREAD_BYTES, WRITE_BYTES, Connection, explain
from cortex_core.http.sweeper import Sweeper

HEAD = b"POST / HTTP/1.1\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
IDLE_S = 100.0


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and takes `room` writes until it is full."""

    def __init__(self, protocol: Connection, room: float = math.inf) -> None:
        super().__init__()
        self.protocol = protocol
        self.room = room
        self.written: list[bytes] = []
        self.buffered = 0
        self.hears = True
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))
        self.room -= 1
        if self.room == 0:
            self.protocol.pause_writing()

    def make_room(self, room: float) -> None:
        self.room = room
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def pause_reading(self) -> None:
        self.hears = False

    def resume_reading(self) -> None:
        self.hears = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


class Made:
    """A connection on a `Wire`, and those of it that were lost."""

    def __init__(self, room: float = math.inf) -> None:
        self.lost: list[Connection] = []
        self.sweeper = Sweeper(lambda now_s: math.inf)
        self.connection = Connection("the node", self.sweeper, self.lost.append)
        self.wire = Wire(self.connection, room)
        self.connection.connection_made(self.wire)

    def send(self, body: bytes = b"", method: str = "POST") -> None:
        self.connection.send(method, HEAD, body, IDLE_S)


async def settled(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has run until it waits."""
    task = asyncio.get_running_loop().create_task(coroutine)
    await asyncio.sleep(0)
    return task


async def test_a_head_and_a_small_body_leave_in_one_write() -> None:
    for body in (b"", b"{}", b"x" * WRITE_BYTES):
        made = Made()
        made.send(body)
        assert made.wire.written == [HEAD + body]


async def test_a_long_body_leaves_as_the_connection_takes_it() -> None:
    body = bytes(range(256)) * (4 * WRITE_BYTES // 256) + b"end"
    made = Made(room=2)
    made.send(body)
    assert [len(part) for part in made.wire.written] == [len(HEAD) + WRITE_BYTES, WRITE_BYTES]
    made.wire.make_room(1)
    assert len(made.wire.written) == 3
    made.wire.make_room(math.inf)
    assert b"".join(made.wire.written) == HEAD + body


async def test_a_connection_that_is_full_at_once_takes_the_rest_later() -> None:
    made = Made(room=1)
    made.send(b"x" * (WRITE_BYTES + 1))
    assert len(made.wire.written) == 1
    made.wire.make_room(1)
    assert made.wire.written[1:] == [b"x"]


async def test_an_answer_may_come_before_the_body_is_out() -> None:
    made = Made(room=1)
    made.send(b"x" * 3 * WRITE_BYTES)
    made.connection.data_received(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
    assert (await made.connection.head())[0] == 413
    assert (await made.connection.read(), await made.connection.read()) == (b"no", b"")
    assert not made.connection.is_done
    made.wire.make_room(math.inf)  # nobody is in its way, so it goes on
    assert sum(map(len, made.wire.written)) == len(HEAD) + 3 * WRITE_BYTES
    made.wire.buffered = 1
    assert not made.connection.is_done
    made.wire.buffered = 0
    assert made.connection.is_done


async def test_nothing_is_written_on_a_connection_that_was_given_up() -> None:
    made = Made(room=1)
    made.send(b"x" * 3 * WRITE_BYTES)
    made.connection.abort("why")
    made.wire.make_room(math.inf)
    assert len(made.wire.written) == 1


async def test_reading_gives_all_that_has_come_in_one_piece() -> None:
    made = Made()
    made.send()
    made.connection.data_received(CHUNKED + b"1\r\na\r\n1\r\nb\r\n")
    made.connection.data_received(b"1\r\nc\r\n")
    assert await made.connection.read() == b"abc"
    reading = await settled(made.connection.read())
    assert not reading.done()
    made.connection.data_received(b"1\r")
    made.connection.data_received(b"\nd")
    assert await reading == b"d"
    made.connection.data_received(b"\r\n0\r\n\r\n")
    assert [await made.connection.read() for _ in range(2)] == [b"", b""]
    assert made.connection.is_done


async def test_an_upstream_is_not_listened_to_while_its_reader_is_behind() -> None:
    made = Made()
    made.send()
    made.connection.data_received(OK + b"content-length: 10000000\r\n\r\n")
    made.connection.data_received(b"x" * MAX_UNREAD_BYTES)
    assert made.wire.hears
    made.connection.data_received(b"x")
    assert not made.wire.hears
    assert len(await made.connection.read()) == MAX_UNREAD_BYTES + 1
    assert made.wire.hears


async def test_an_answer_is_done_only_when_its_last_byte_was_taken() -> None:
    made = Made()
    made.send()
    assert not made.connection.is_done
    made.connection.data_received(OK + b"content-length: 2\r\n\r\na")
    assert await made.connection.read() == b"a"
    assert not made.connection.is_done
    made.connection.data_received(b"b")
    assert not made.connection.is_done
    assert await made.connection.read() == b"b"
    assert made.connection.is_done


async def test_what_nobody_asked_for_ends_the_connection() -> None:
    made = Made()
    made.connection.data_received(b"x")
    assert made.wire.is_aborted
    asked = Made()
    asked.send()
    asked.connection.data_received(OK + b"content-length: 2\r\n\r\nab")
    asked.connection.data_received(b"x")
    assert asked.wire.is_aborted
    assert (await asked.connection.read(), await asked.connection.read()) == (b"ab", b"")
    assert not asked.connection.is_done


async def test_a_connection_that_is_lost_says_where() -> None:
    for came, reason in {
        b"": "it was closed without an answer",
        b"HTTP/1.1": "it was closed in the middle of an answer",
        CHUNKED: "it was closed in the middle of an answer",
    }.items():
        made = Made()
        made.send()
        if came:
            made.connection.data_received(came)
        reading = await settled(made.connection.read())
        made.connection.connection_lost(None)
        with pytest.raises(UpstreamConnectionError) as caught:
            await reading
        assert caught.value.message == f"The connection to the node failed: {reason}."
        assert made.lost == [made.connection]
        assert made.connection.lost.done()


async def test_what_came_before_a_loss_is_still_read() -> None:
    made = Made()
    made.send()
    made.connection.data_received(CHUNKED + b"1\r\na\r\n")
    made.connection.connection_lost(ConnectionResetError(errno.ECONNRESET, "x"))
    assert await made.connection.read() == b"a"
    with pytest.raises(UpstreamConnectionError, match="failed: Connection reset by peer"):
        await made.connection.read()


@pytest.mark.parametrize("error", [None, ConnectionResetError(errno.ECONNRESET, "x")])
async def test_an_answer_without_a_length_is_whole_when_it_is_closed_in_order(
    error: Exception | None,
) -> None:
    made = Made()
    made.send()
    made.connection.data_received(OK + b"\r\nab")
    assert await made.connection.read() == b"ab"
    reading = await settled(made.connection.read())
    made.connection.connection_lost(error)
    if error is None:
        assert await reading == b""
    else:
        with pytest.raises(UpstreamConnectionError):
            await reading
    assert not made.connection.is_done


async def test_what_is_no_answer_is_a_protocol_error() -> None:
    made = Made()
    made.send()
    waiting = await settled(made.connection.head())
    made.connection.data_received(b"SSH-2.0-OpenSSH\r\n")
    with pytest.raises(UpstreamProtocolError, match="Expected HTTP/"):
        await waiting
    assert made.wire.is_aborted


async def test_only_who_waits_has_a_deadline_and_each_byte_puts_it_off() -> None:
    made = Made()
    made.send()
    deadlines_s = [made.connection.deadline_s]
    waiting = await settled(made.connection.head())
    deadlines_s.append(made.connection.deadline_s)
    made.connection.data_received(OK)
    await asyncio.sleep(0.01)
    deadlines_s.append(made.connection.deadline_s)
    made.connection.data_received(b"content-length: 1\r\n\r\n")
    await waiting
    deadlines_s.append(made.connection.deadline_s)
    made.sweeper.close()
    assert deadlines_s[0] == deadlines_s[3] == math.inf
    assert deadlines_s[1] < deadlines_s[2] < asyncio.get_running_loop().time() + IDLE_S


async def test_an_upstream_that_takes_a_long_body_is_not_silent() -> None:
    made = Made(room=1)
    made.send(b"x" * 3 * WRITE_BYTES)
    waiting = await settled(made.connection.head())
    before_s = made.connection.deadline_s
    await asyncio.sleep(0.01)
    made.wire.make_room(1)
    assert made.connection.deadline_s > before_s
    made.connection.expire()
    with pytest.raises(UpstreamTimeoutError, match="silent for 100 s"):
        await waiting
    assert made.wire.is_aborted
    made.sweeper.close()


async def test_a_cancelled_reader_leaves_no_deadline() -> None:
    made = Made()
    made.send()
    reading = await settled(made.connection.read())
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert made.connection.deadline_s == math.inf
    made.connection.data_received(OK + b"content-length: 1\r\n\r\na")
    assert await made.connection.read() == b"a"
    made.sweeper.close()


async def test_a_connection_rests_for_so_long() -> None:
    made = Made()
    loop = asyncio.get_running_loop()
    made.connection.rest(loop.time() + 10)
    assert made.connection.is_usable
    made.connection.rest(loop.time() - 1)
    assert not made.connection.is_usable
    made.sweeper.close()


async def test_a_lost_connection_takes_no_request() -> None:
    made = Made()
    made.connection.connection_lost(None)
    assert not made.connection.is_usable
    with pytest.raises(UpstreamConnectionError, match="it was closed"):
        made.send()
    assert made.wire.written == []


async def test_the_first_failure_is_the_one_that_is_told() -> None:
    made = Made()
    made.send()
    reading = await settled(made.connection.read())
    made.connection.abort("why")
    made.connection.connection_lost(None)
    with pytest.raises(FleetError, match="why"):
        await reading


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('::1', 9)"),
            "Connection refused",
        ),
        (FileNotFoundError(errno.ENOENT, "x"), "No such file or directory"),
        (socket.gaierror(-2, "Name or service not known"), "[Errno -2] Name or service not known"),
        (OSError("Multiple exceptions"), "Multiple exceptions"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_a_failure_is_told_in_the_system_s_words(error: OSError, reason: str) -> None:
    assert explain(error) == reason
