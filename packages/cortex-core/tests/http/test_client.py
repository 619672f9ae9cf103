# SPDX-License-Identifier: GPL-3.0-or-later
"""The client: on TCP and on unix sockets, by our own connections and by aiohttp's, every failure is one of our errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex_core.errors import (
    FleetError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from cortex_core.http.client import Client, RefusedError, read_all
from cortex_core.http.pool import KEEP_IDLE_S, Pool
from cortex_core.http.session import Session
from cortex_core.testing import Scripted, serving

JSON = [(b"content-type", b"application/json")]


Make = Callable[..., Client]
Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Answer(msgspec.Struct):
    value: int


@pytest.fixture(params=[Pool, Session])
def make(request: pytest.FixtureRequest) -> Make:
    """Clients that stand on our own connections, and on aiohttp's."""

    def make(endpoint: str, **settings: Any) -> Client:
        client = Client(endpoint, **settings)
        assert isinstance(client._connections, Pool)
        # aiohttp is asked for no unix socket
        if request.param is Session and not endpoint.startswith("unix:"):
            keep_idle_s = settings.get("keep_idle_s", KEEP_IDLE_S)
            client._connections = Session(
                endpoint, settings.get("headers") or [], keep_idle_s=keep_idle_s
            )
        return client

    return make


@asynccontextmanager
async def speaking(speak: Speak) -> AsyncIterator[str]:
    """An upstream made of bytes, which begins when it has a request's head; yields its endpoint."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await speak(reader, writer)
        writer.close()
        await writer.wait_closed()

    async with asyncio.TaskGroup() as tasks:
        server = await asyncio.start_server(
            lambda reader, writer: tasks.create_task(serve(reader, writer)), "127.0.0.1", 0
        )
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()


def saying(*pieces: bytes) -> Speak:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return say


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/s"


async def test_what_is_asked_arrives_as_it_was_sent(make: Make, address: str) -> None:
    upstream = Scripted(lambda n: (200, JSON, [b"{}"]))
    async with serving(upstream, address) as endpoint:
        client = make(endpoint, headers=[(b"authorization", b"Bearer s")])
        body = b'{"a": 1.0, "b": "\xc3\xa4"}'
        async with client.open(
            "POST", "/p/a%2Fb?q=1", headers=[(b"x-a", b"1")], body=body
        ) as reply:
            assert await read_all(reply) == b"{}"
        await client.close()
    method, path, headers, got = upstream.asked[0]
    assert (method, path, got) == ("POST", "/p/a/b", body)
    names = [name for name, _ in headers if name not in (b"host", b"content-length")]
    assert sorted(names) == [b"authorization", b"x-a"]


async def test_ask_decodes_the_answer(make: Make, address: str) -> None:
    upstream = Scripted(lambda n: (200, JSON, [b'{"value": 3, "new": true}']))
    async with serving(upstream, address) as endpoint:
        client = make(endpoint)
        assert await client.ask("POST", "/x", Answer, {"a": 1}) == Answer(value=3)
        await client.close()
    assert upstream.asked[0][3] == b'{"a":1}'


async def test_an_error_of_the_upstream_is_told_with_its_facts(make: Make) -> None:
    body = b'{"error": {"message": "no", "code": "c", "kind": "k"}}'
    upstream = Scripted(lambda n: (422, JSON, [body]))
    async with serving(upstream) as endpoint:
        client = make(endpoint)
        with pytest.raises(RefusedError) as caught:
            await client.ask("GET", "/x", Answer)
        await client.close()
    assert (caught.value.status, caught.value.code, caught.value.message) == (422, "c", "no")
    assert caught.value.facts["kind"] == "k"


@pytest.mark.parametrize("body", [b"<html>", b"", b"\xff", b'{"error": "flat"}', b"[]"])
def test_an_error_in_any_other_shape_is_still_told(body: bytes) -> None:
    assert RefusedError(500, body).code is None


@pytest.mark.parametrize("body", [b"<html>", b'{"value": "three"}', b"", b"\xff"])
async def test_an_answer_that_does_not_fit_is_a_protocol_error(make: Make, body: bytes) -> None:
    async with serving(Scripted(lambda n: (200, JSON, [body]))) as endpoint:
        client = make(endpoint)
        with pytest.raises(UpstreamProtocolError):
            await client.ask("GET", "/x", Answer)
        await client.close()


async def test_silence_is_a_timeout(make: Make) -> None:
    async with serving(Scripted(lambda n: (200, JSON, [b"{", None]))) as endpoint:
        client = make(endpoint, idle_timeout_s=0.05)
        async with client.open("GET", "/x") as reply:
            assert await reply.read() == b"{"
            with pytest.raises(UpstreamTimeoutError):
                await reply.read()
        with pytest.raises(UpstreamTimeoutError):
            await client.ask("GET", "/x", Answer, timeout_s=0.05)
        await client.close()


@pytest.mark.parametrize(("chunks", "head_s", "idle_s"), [([], 0.05, 30), ([b"{"], 30, 0.05)])
async def test_silence_before_an_answer_and_within_it_have_their_own_bounds(
    make: Make, chunks: list[bytes], head_s: float, idle_s: float
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for chunk in chunks:
            writer.write(CHUNKED + b"1\r\n%b\r\n" % chunk)
        await reader.read()

    async with speaking(silent) as endpoint, asyncio.timeout(5):
        client = make(endpoint, idle_timeout_s=idle_s)
        with pytest.raises(UpstreamTimeoutError):
            async with client.open("POST", "/x", body=b"{}", head_timeout_s=head_s) as reply:
                await read_all(reply)
        await client.close()


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "raw", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 99999 OK\r\n\r\n", OK + b"a\r\n\r\n"]
)
async def test_an_upstream_that_speaks_garbage_is_a_protocol_error(make: Make, raw: bytes) -> None:
    async with speaking(saying(raw)) as endpoint:
        client = make(endpoint)
        with pytest.raises(UpstreamProtocolError):
            await client.ask("GET", "/x", Answer)
        await client.close()


async def test_chunks_that_turn_into_garbage_do_not_hold_a_reader_for_ever(make: Make) -> None:
    was_read = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await was_read.wait()
        writer.write(b"\x16\x03 no chunk\r\n\r\n")

    async with speaking(speak) as endpoint:
        client = make(endpoint, idle_timeout_s=0.1)
        async with asyncio.timeout(5), client.open("GET", "/x") as reply:
            assert await reply.read() == b"a"
            was_read.set()
            with pytest.raises(FleetError):
                await reply.read()
        await client.close()


@pytest.mark.parametrize(
    ("method", "raw", "status", "body"),
    [
        ("POST", OK + b"content-length: 2\r\n\r\nab", 200, b"ab"),
        ("POST", OK + b"content-length: 0\r\n\r\n", 200, b""),
        ("POST", CHUNKED + b"1\r\na\r\n1;x=y\r\nb\r\n0\r\nx: y\r\n\r\n", 200, b"ab"),
        ("POST", OK + b"\r\nab", 200, b"ab"),
        ("POST", b"HTTP/1.0 200 OK\r\n\r\nab", 200, b"ab"),
        (
            "POST",
            b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\nab",
            200,
            b"ab",
        ),
        ("POST", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n", 304, b""),
        ("HEAD", OK + b"content-length: 2\r\n\r\n", 200, b""),
        ("POST", b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nab", 503, b"ab"),
        ("POST", b"HTTP/1.1 302 There\r\nlocation: /y\r\ncontent-length: 2\r\n\r\nab", 302, b"ab"),
    ],
)
async def test_answers_of_every_framing_are_read(
    make: Make, method: str, raw: bytes, status: int, body: bytes
) -> None:
    async with speaking(saying(raw)) as endpoint:
        client = make(endpoint)
        async with client.open(method, "/x") as reply:
            assert (reply.status, await read_all(reply)) == (status, body)
            assert await reply.read() == b""
        await client.close()


@pytest.mark.parametrize(
    "cut",
    [CHUNKED, CHUNKED + b"2\r\na", CHUNKED + b"1\r\na\r\n", OK + b"content-length: 2\r\n\r\na"],
)
async def test_an_answer_that_is_cut_is_a_connection_error(make: Make, cut: bytes) -> None:
    async with speaking(saying(cut)) as endpoint:
        client = make(endpoint)
        async with client.open("POST", "/x", body=b"{}") as reply:
            with pytest.raises(UpstreamConnectionError):
                await read_all(reply)
        await client.close()


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 200", OK])
async def test_an_upstream_that_leaves_before_its_answer_is_a_connection_error(
    make: Make, cut: bytes
) -> None:
    async with speaking(saying(cut)) as endpoint:
        client = make(endpoint)
        with pytest.raises(UpstreamConnectionError):
            async with client.open("POST", "/x", body=b"{}"):
                pass
        await client.close()


async def test_headers_are_given_as_they_came(make: Make) -> None:
    raw = (
        OK
        + b"Content-Type: text/event-stream; charset=utf-8\r\nX-A: \xe4\r\nX-A: 2\r\ncontent-length: 0\r\n\r\n"
    )
    async with speaking(saying(raw)) as endpoint:
        client = make(endpoint)
        async with client.open("GET", "/x") as reply:
            assert reply.headers[1:3] == [(b"X-A", b"\xe4"), (b"X-A", b"2")]
            assert reply.is_event_stream
        await client.close()


async def test_who_leaves_early_is_seen_to_leave(make: Make, address: str) -> None:
    upstream = Scripted(lambda n: (200, JSON, [b"a", None]))
    async with serving(upstream, address) as endpoint:
        client = make(endpoint)
        async with client.open("POST", "/x", body=b"{}") as reply:
            assert await reply.read() == b"a"
        async with asyncio.timeout(1):
            await upstream.left.wait()
        reading = asyncio.create_task(client.ask("POST", "/x", Answer, {}))
        upstream.left.clear()
        upstream.began.clear()
        await upstream.began.wait()
        reading.cancel()
        async with asyncio.timeout(1):
            await upstream.left.wait()
        await client.close()


async def test_a_header_that_would_be_two_is_not_sent(make: Make) -> None:
    async with serving(Scripted(lambda n: (200, JSON, [b"{}"]))) as endpoint:
        client = make(endpoint)
        with pytest.raises(UpstreamProtocolError):
            async with client.open("GET", "/x", headers=[(b"a", b"b\r\nc: d")]):
                pass
        await client.close()


async def test_a_client_that_was_closed_asks_nobody(make: Make) -> None:
    client = make("http://127.0.0.1:9")
    await client.close()
    with pytest.raises(UpstreamConnectionError, match="the client was closed"):
        await client.ask("GET", "/x", Answer)


@pytest.mark.parametrize(
    "endpoint", ["https://127.0.0.1:9", "http://u:p@127.0.0.1:9", "http://127.0.0.1:99999", "what"]
)
async def test_what_is_not_plain_is_asked_by_aiohttp(endpoint: str) -> None:
    client = Client(endpoint + "/")
    assert isinstance(client._connections, Session)
    with pytest.raises(FleetError):
        await client.ask("GET", "/x", Answer)
    await client.close()


async def test_an_upstream_that_is_not_there_is_a_connection_error(
    make: Make, tmp_path: Path
) -> None:
    for endpoint in ("http://127.0.0.1:9", f"unix:{tmp_path}/none"):
        client = make(endpoint)
        with pytest.raises(UpstreamConnectionError):
            await client.ask("GET", "/x", Answer)
        await client.close()


@pytest.mark.parametrize(("keep_idle_s", "connections"), [(KEEP_IDLE_S, 1), (0.001, 2)])
async def test_an_idle_connection_is_kept_for_as_long_as_is_said(
    make: Make, keep_idle_s: float, connections: int
) -> None:
    ports = set()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        ports.add(scope["client"][1])
        await send({"type": "http.response.start", "status": 200, "headers": JSON})
        await send({"type": "http.response.body", "body": b'{"value": 1}'})

    async with serving(answer) as endpoint:
        client = make(endpoint, keep_idle_s=keep_idle_s)
        for _ in range(2):
            await client.ask("GET", "/x", Answer)
            await asyncio.sleep(0.01)
        await client.close()
    assert len(ports) == connections
