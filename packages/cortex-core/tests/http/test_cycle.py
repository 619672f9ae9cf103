# SPDX-License-Identifier: GPL-3.0-or-later
"""One request and its answer: how answers are framed, and who waits for whom."""

import asyncio
import contextlib

import pytest

from cortex_core.http.cycle import HIGH_BYTES
from cortex_core.http.exchange import Message, Receive, Scope, Send
from cortex_core.http.testing import (
    CLOSE,
    answer,
    ask,
    connected,
    read_answer,
    read_body,
    sending,
    tell,
)

STREAM: list[Message] = [
    {"type": "http.response.start", "status": 200, "headers": []},
    {"type": "http.response.body", "body": b"ab", "more_body": True},
    {"type": "http.response.body", "body": b"", "more_body": True},
    {"type": "http.response.body", "body": b"c", "more_body": True},
    {"type": "http.response.body", "body": b""},
]


@pytest.mark.parametrize(
    ("messages", "request_bytes", "body", "without"),
    [
        (STREAM, CLOSE, b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"content-length"),
        (STREAM, b"GET / HTTP/1.0\r\n\r\n", b"abc", b"transfer-encoding"),
        (STREAM, CLOSE.replace(b"GET", b"HEAD"), b"", b"content-length"),
        (answer(b"ab"), CLOSE, b"ab", b"transfer-encoding"),
        (answer(b"", 204), CLOSE, b"", b"content-length"),
        (answer(b"", 304, (b"content-length", b"9")), CLOSE, b"", b"transfer-encoding"),
        (answer(b"ab", 200, (b"content-length", b"2")), CLOSE.replace(b"GET", b"HEAD"), b"", b"transfer-encoding"),
        (answer(b"x", 599), CLOSE, b"x", b"transfer-encoding"),
    ],
)  # fmt: skip
async def test_an_answer_is_framed_as_its_request_allows(
    messages: list[Message], request_bytes: bytes, body: bytes, without: bytes
) -> None:
    head, _, rest = (await ask(sending(*messages), request_bytes)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % messages[0]["status"])
    assert head.lower().count(b"\r\ndate: ") == 1
    assert (rest, without in head.lower()) == (body, False)


async def test_a_client_that_waits_to_be_told_to_go_on_is_told() -> None:
    async with connected(tell) as (reader, writer):
        writer.write(
            b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await read_answer(reader))[0].startswith(b"http/1.1 200")


@pytest.mark.slow
async def test_a_client_that_reads_slowly_makes_the_application_wait() -> None:
    sent = 0
    waits = asyncio.Event()
    part = b"x" * 65536

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for sent in range(1, 1000):  # noqa: B007 - told to the test
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with connected(app) as (reader, writer):
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await waits.wait()
        assert sent < 500  # what the kernel and both buffers take, and no more
        assert len(await reader.read()) == 999 * len(part)


async def test_an_upload_that_nobody_takes_waits_in_the_client() -> None:
    take = asyncio.Event()
    got = b""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal got
        if scope["type"] == "http":
            await take.wait()
            got = await read_body(receive) or b""
            for message in answer(b"ok"):
                await send(message)

    size = 40 * HIGH_BYTES
    async with connected(app) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        writer.write(b"y" * size)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await writer.drain()
        take.set()
        await writer.drain()
        assert (await read_answer(reader))[1] == b"ok"
    assert got == b"y" * size


async def test_an_answer_before_the_end_of_the_upload_arrives_whole_and_ends_the_connection() -> (
    None
):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await receive()
            for message in answer(b"no", 413):
                await send(message)

    async with connected(app) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\nabc")
        assert (await read_answer(reader))[1] == b"no"
        writer.write(b"z" * 100_000)  # still on its way when we answered
        assert await reader.read() == b""


@pytest.mark.slow
@pytest.mark.parametrize("raises", [True, False])
async def test_an_application_that_does_not_answer_breaks_the_connection(raises: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            if raises:
                raise RuntimeError

    async with connected(app) as (reader, writer):
        writer.write(CLOSE)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readuntil(b"0\r\n\r\n")


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\r\n\r\nHTTP/1.1 200 OK"])
async def test_a_header_that_would_be_two_is_never_sent(value: bytes) -> None:
    async with connected(sending(*answer(b"", 200, (b"x-a", value)))) as (reader, writer):
        writer.write(CLOSE)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
