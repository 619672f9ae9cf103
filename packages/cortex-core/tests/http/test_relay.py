# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay: the disconnect first, then what the client sees when the upstream does well, or badly."""

import asyncio

import pytest

from cortex_core.errors import UpstreamConnectionError, UpstreamProtocolError
from cortex_core.http.client import Client, RefusedError
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Front
from cortex_core.http.relay import Verbatim, VerbatimResponses, relay, retell
from cortex_core.testing import Scripted, collect, serving

SSE = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json"), (b"x-engine", b"yes")]
ONE = b'data: {"n":1}\n\n'
DONE = b"data: [DONE]\n\n"


def build_front(client: Client) -> Front:
    async def handler(exchange: Exchange, body: bytes) -> None:
        async with client.open("POST", "/v1/x", body=body) as reply:
            await relay(exchange, reply, Verbatim("the node"), [(b"x-extra", b"1")])

    return Front(daemon="gateway", hot={"/v1/x": handler}, routes=[])


@pytest.mark.parametrize("headers", [SSE, JSON], ids=["stream", "whole"])
async def test_a_client_that_leaves_closes_the_upstream(headers: list[tuple[bytes, bytes]]) -> None:
    upstream = Scripted(lambda n: (200, headers, [ONE, None]))
    async with serving(upstream) as endpoint:
        client = Client(endpoint)
        leave = asyncio.Event()
        request = asyncio.create_task(collect(build_front(client), "POST", "/v1/x", leave=leave))
        await upstream.began.wait()
        leave.set()
        async with asyncio.timeout(1):
            await request
            await upstream.left.wait()
        await client.close()


async def test_a_client_that_leaves_over_a_real_connection_closes_the_upstream() -> None:
    upstream = Scripted(lambda n: (200, SSE, [ONE, None]))
    async with serving(upstream) as endpoint:
        client = Client(endpoint)
        async with serving(build_front(client)) as gateway:
            outer = Client(gateway)
            async with outer.open("POST", "/v1/x", body=b"{}") as reply:
                assert await reply.read() == ONE
            async with asyncio.timeout(1):
                await upstream.left.wait()
            await outer.close()
        await client.close()


async def test_a_stream_leaves_as_it_comes_with_its_headers() -> None:
    upstream = Scripted(lambda n: (200, SSE, [ONE, DONE]))
    async with serving(upstream) as endpoint:
        client = Client(endpoint)
        got = await collect(build_front(client), "POST", "/v1/x", body=b"{}")
        await client.close()
    assert got.body == ONE + DONE
    assert got.header(b"content-type") == b"text/event-stream"
    assert got.header(b"x-extra") == b"1"
    assert got.header(b"content-length") is None


async def test_a_whole_answer_keeps_status_body_and_headers() -> None:
    upstream = Scripted(lambda n: (429, [*JSON, (b"retry-after", b"7")], [b'{"a":', b"1}"]))
    async with serving(upstream) as endpoint:
        client = Client(endpoint)
        got = await collect(build_front(client), "POST", "/v1/x", body=b"{}")
        await client.close()
    assert (got.status, got.body) == (429, b'{"a":1}')
    assert got.header(b"retry-after") == b"7"
    assert got.header(b"x-engine") == b"yes"
    assert got.header(b"content-length") == b"7"


async def test_a_stream_that_ends_without_done_ends_in_an_error_and_done() -> None:
    upstream = Scripted(lambda n: (200, SSE, [ONE]))
    async with serving(upstream) as endpoint:
        client = Client(endpoint)
        got = await collect(build_front(client), "POST", "/v1/x", body=b"{}")
        await client.close()
    assert got.body.startswith(ONE)
    assert b'"code":"upstream_protocol_error"' in got.body
    assert got.body.endswith(DONE)


async def test_an_upstream_that_cuts_an_event_ends_in_an_error_that_can_be_read() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b'9\r\ndata: {"n\r\n')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}")
    got = await collect(build_front(client), "POST", "/v1/x", body=b"{}")
    await client.close()
    server.close()
    broken, error, done = got.body.removesuffix(b"\n\n").split(b"\n\n")
    assert broken == b'data: {"n'
    assert b'"code":"upstream_connection_error"' in error
    assert done == b"data: [DONE]"


async def test_an_upstream_that_is_not_there_is_a_502_with_retry_after() -> None:
    client = Client("http://127.0.0.1:9")
    got = await collect(build_front(client), "POST", "/v1/x", body=b"{}")
    await client.close()
    assert (got.status, got.json["error"]["code"]) == (502, "upstream_connection_error")
    assert got.header(b"retry-after") == b"2"


@pytest.mark.parametrize("tail", [b"", ONE, b'data: {"n', b"data: x\r\n\r\n"])
def test_verbatim_closes_an_open_event_before_its_error(tail: bytes) -> None:
    passing = Verbatim("the node")
    passing.feed(tail)
    out = passing.fail(UpstreamConnectionError(upstream="a", reason="cut"))
    opened = tail == b'data: {"n'
    assert out.startswith(b"\n\ndata: {" if opened else b"data: {")
    assert out.endswith(DONE)


def test_verbatim_knows_done_at_any_cut() -> None:
    stream = ONE + DONE
    for cut in range(len(stream) + 1):
        passing = Verbatim("the node")
        assert passing.feed(stream[:cut]) + passing.feed(stream[cut:]) == stream
        assert passing.close() == b""
    passing = Verbatim("the node")
    for index in range(len(stream)):
        passing.feed(stream[index : index + 1])
    assert passing.close() == b""


CREATED = b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n'
DELTA = b'event: x\ndata: {"type":"response.output_text.delta","sequence_number":1}\n\n'
COMPLETED = b'event: x\ndata: {"type":"response.completed","sequence_number":2}\n\n'


def cuts(stream: bytes) -> list[list[bytes]]:
    """In two pieces, cut everywhere, and byte by byte."""
    halves = [[stream[:cut], stream[cut:]] for cut in range(len(stream) + 1)]
    return [*halves, [stream[i : i + 1] for i in range(len(stream))]]


@pytest.mark.parametrize("end", [b"", DONE], ids=["bare", "done"])
def test_responses_know_their_last_event_at_any_cut(end: bytes) -> None:
    stream = CREATED + DELTA + COMPLETED + end
    for pieces in cuts(stream):
        passing = VerbatimResponses("the node")
        assert b"".join([passing.feed(piece) for piece in pieces]) == stream
        assert passing.close() == b""
        assert passing.fail(UpstreamConnectionError(upstream="a", reason="cut")) == b""


def test_a_last_event_without_its_empty_line_is_an_end() -> None:
    passing = VerbatimResponses("the node")
    passing.feed(CREATED + COMPLETED[:-2])
    assert passing.close() == b""


@pytest.mark.parametrize("rest", [b"", DELTA, DELTA + COMPLETED[:-20], DONE])
def test_responses_without_their_last_event_are_broken_and_say_so(rest: bytes) -> None:
    for pieces in cuts(CREATED + rest):
        passing = VerbatimResponses("the node")
        for piece in pieces:
            passing.feed(piece)
        with pytest.raises(UpstreamProtocolError, match="ended before its response did") as caught:
            passing.close()
        out = passing.fail(caught.value)
        assert out.startswith(
            b"event: error" if rest.endswith(b"\n\n") or not rest else b"\n\nevent: error"
        )
        assert (b'"sequence_number":2}' if DELTA in rest else b'"sequence_number":1}') in out
        assert b'"type":"error","code":"upstream_protocol_error"' in out
        assert b"[DONE]" not in out


async def test_a_client_that_has_its_headers_gets_the_rest_of_the_stream() -> None:
    upstream = Scripted(lambda n: (200, SSE, [ONE, DONE]))
    async with serving(upstream) as endpoint:
        client = Client(endpoint)

        async def handler(exchange: Exchange, body: bytes) -> None:
            await exchange.start(200, SSE)
            await exchange.write(b": held\n\n")
            async with client.open("POST", "/v1/x", body=body) as reply:
                await relay(exchange, reply, Verbatim("the node"), [])

        front = Front(daemon="gateway", hot={"/v1/x": handler}, routes=[])
        got = await collect(front, "POST", "/v1/x")
        await client.close()
    assert (got.status, got.body) == (200, b": held\n\n" + ONE + DONE)
    assert [message["type"] for message in got.messages].count("http.response.start") == 1


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (400, b'{"error": {"code": "context_length_exceeded", "message": "{a}"}}', "context_length_exceeded", "{a}"),
        (503, b'{"error": {"code": "shutting_down", "message": "bye"}}', "shutting_down", "bye"),
        (422, b'{"error": {"code": "odd", "message": "no"}}', "invalid_request_body", "The request body does not fit: no."),
        (503, b'{"error": {"code": 503, "type": "unavailable_error", "message": "Loading model"}}', "wait_timeout", "Loading model"),
        (503, b'{"error": {"code": "overloaded", "message": "no"}}', "wait_timeout", "no"),
        (429, b'{"error": {"code": null, "message": "slower"}}', "rate_limit_exceeded", "slower"),
        (429, b"page", "rate_limit_exceeded", "page"),
        (500, b"page", "upstream_protocol_error", "the node answered something that cannot be understood: 500: page."),
    ],
)  # fmt: skip
def test_a_refusal_is_retold_with_its_code_and_words(
    status: int, body: bytes, code: str, message: str
) -> None:
    error = retell(RefusedError(status, body))
    assert (error.code, error.message) == (code, message)


def test_who_is_busy_says_when_to_come_again() -> None:
    busy = retell(RefusedError(503, b"{}", [(b"retry-after", b"7")]))
    assert busy.retry_after_s == 7
