# SPDX-License-Identifier: GPL-3.0-or-later
"""The front: every refusal is an envelope, limits hold, work is counted and drained."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cortex_core.errors import (
    CortexError,
    InvalidApiKeyError,
    ModelNotFoundError,
    QueueFullError,
)
from cortex_core.http.client import Client
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Front
from cortex_core.testing import collect, serving


async def echo(exchange: Exchange, body: bytes) -> None:
    await exchange.answer(200, body)


async def broken(exchange: Exchange, body: bytes) -> None:
    raise RuntimeError("secret detail")


async def missing(exchange: Exchange, body: bytes) -> None:
    raise ModelNotFoundError(model="x")


async def full(exchange: Exchange, body: bytes) -> None:
    raise QueueFullError(model="x", waiting=3, retry_after_s=0.2)


async def show(request: Request) -> Response:
    return JSONResponse({"id": request.path_params["id"]})


async def cold_broken(request: Request) -> Response:
    raise RuntimeError("secret detail")


async def cold_refusing(request: Request) -> Response:
    raise ModelNotFoundError(model="x")


def build(**options: object) -> Front:
    return Front(
        daemon="gateway",
        hot={"/v1/echo": echo, "/v1/broken": broken, "/v1/missing": missing, "/v1/full": full}
        | ({"/v1/messages": missing}),
        routes=[
            Route("/show/{id:path}", show),
            Route("/broken", cold_broken),
            Route("/refusing", cold_refusing),
        ],
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/missing", 404, "model_not_found"),
        ("POST", "/v1/broken", 500, "internal_error"),
        ("GET", "/v1/echo", 405, "method_not_allowed"),
        ("GET", "/nowhere", 404, "route_not_found"),
        ("POST", "/show/a", 405, "method_not_allowed"),
        ("GET", "/refusing", 404, "model_not_found"),
        ("GET", "/broken", 500, "internal_error"),
    ],
)
async def test_every_refusal_is_openais_envelope(
    method: str, path: str, status: int, code: str
) -> None:
    got = await collect(build(), method, path, headers=[(b"x-request-id", b"r1")])
    assert (got.status, got.json["error"]["code"]) == (status, code)
    assert set(got.json["error"]) >= {"message", "type", "code", "param"}
    assert "secret" not in got.json["error"]["message"]
    assert [value for name, value in got.headers if name == b"x-request-id"] == [b"r1"]


async def test_a_method_that_is_not_taken_says_which_is() -> None:
    hot = await collect(build(), "PUT", "/v1/echo")
    cold = await collect(build(), "PUT", "/show/a")
    assert hot.header(b"allow") == b"POST"
    assert cold.header(b"allow") == b"GET, HEAD"


async def test_refusals_on_anthropics_path_are_anthropics_envelope() -> None:
    got = await collect(build(), "POST", "/v1/messages", headers=[(b"x-request-id", b"r1")])
    assert got.json["type"] == "error"
    assert got.json["error"]["type"] == "not_found_error"
    assert got.json["request_id"] == "r1"
    assert got.header(b"request-id") == got.header(b"x-request-id") == b"r1"


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/responses", "/v1/models", "/v1/files"]
)
async def test_a_version_of_anthropics_counts_where_the_path_does_not_tell_whose_it_is(
    path: str,
) -> None:
    got = await collect(build(), "GET", path, headers=[(b"anthropic-version", b"2023-06-01")])
    is_openais = path in ("/v1/chat/completions", "/v1/responses")
    assert got.json.get("type") == (None if is_openais else "error")


async def test_retry_after_is_whole_seconds_and_never_zero() -> None:
    got = await collect(build(), "POST", "/v1/full")
    assert (got.status, got.header(b"retry-after")) == (429, b"1")


async def test_ids_in_paths_may_hold_slashes_and_colons() -> None:
    got = await collect(build(), "GET", "/show/hf:org/name")
    assert got.json == {"id": "hf:org/name"}


@pytest.mark.parametrize("sent", [b"", b"bad id\n", b"x" * 200])
async def test_a_request_id_that_is_not_sane_is_replaced(sent: bytes) -> None:
    got = await collect(build(), "POST", "/v1/echo", headers=[(b"x-request-id", sent)])
    own = got.header(b"x-request-id")
    assert own is not None
    assert own.startswith(b"req_")


@pytest.mark.parametrize("encoding", [b"gzip", b"Zstd, identity"])
async def test_a_body_that_is_compressed_is_refused_by_its_encoding(encoding: bytes) -> None:
    sent = [(b"content-type", b"application/json"), (b"content-encoding", encoding)]
    got = await collect(build(), "POST", "/v1/echo", headers=sent, body=b"\x1f\x8b")
    assert (got.status, got.json["error"]["code"]) == (415, "unsupported_media_type")
    assert f"Content-Encoding: {encoding.decode()}'" in got.json["error"]["message"]


async def test_a_body_that_says_that_it_is_as_it_is_is_taken() -> None:
    sent = [(b"content-encoding", b"Identity")]
    assert (await collect(build(), "POST", "/v1/echo", headers=sent, body=b"{}")).status == 200


async def test_a_content_type_that_is_no_json_is_refused() -> None:
    got = await collect(build(), "POST", "/v1/echo", headers=[(b"content-type", b"image/png")])
    assert (got.status, got.json["error"]["code"]) == (415, "unsupported_media_type")
    form = [(b"content-type", b"application/x-www-form-urlencoded")]  # curl -d without a header
    assert (await collect(build(), "POST", "/v1/echo", body=b"{}", headers=form)).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/echo", "/show/a", "/nowhere"])
async def test_a_body_of_100_mb_is_413_and_the_connection_lives(path: str) -> None:
    async with serving(build(max_body_mb=1)) as endpoint:
        client = Client(endpoint)
        async with client.open("POST", path, body=b" " * 100_000_000) as reply:
            assert reply.status == 413
            assert b"request_too_large" in await reply.read()
        async with client.open("POST", "/v1/echo", body=b"{}") as reply:
            assert reply.status == 200
        await client.close()


@pytest.mark.parametrize("path", ["/v1/echo", "/nowhere"])
async def test_a_client_that_vanishes_in_its_upload_holds_nothing_for_long(path: str) -> None:
    ends: list[str | None] = []
    front = build(
        body_idle_s=0.05, on_end=lambda e, error: ends.append(error.code if error else None)
    )
    async with serving(front) as endpoint:
        host, port = endpoint.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
        writer.write(head.encode() + b"{")
        async with asyncio.timeout(2):
            answer = await reader.read()  # to the end: the connection is closed
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"code":"request_timeout"' in answer
        assert front.in_flight == 0
    assert ends == (["request_timeout"] if path == "/v1/echo" else [])


@pytest.mark.slow
async def test_a_slow_upload_that_goes_on_is_taken() -> None:
    async with serving(build(body_idle_s=0.2)) as endpoint:
        host, port = endpoint.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n")
        for byte in (b"a", b"b", b"c", b"d"):
            await asyncio.sleep(0.06)
            writer.write(byte)
        async with asyncio.timeout(2):
            answer = await reader.readuntil(b"abcd")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("after", [0, 1, 2], ids=["start", "write", "end"])
@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError, OSError])
async def test_a_connection_that_breaks_is_the_client_gone_and_no_fault(
    error: type[OSError], after: int
) -> None:
    ends: list[tuple[str | None, bool]] = []
    sent = 0

    async def handler(exchange: Exchange, body: bytes) -> None:
        await exchange.start(200, [])
        await exchange.write(b"a")
        await exchange.end(b"b")

    def break_off(message: object) -> None:
        nonlocal sent
        sent += 1
        if sent > after:
            raise error

    front = Front(
        daemon="g",
        hot={"/v1/x": handler},
        routes=[],
        on_end=lambda e, x: ends.append((x.code if x else None, e.client_gone)),
    )
    await collect(front, "POST", "/v1/x", on_message=break_off)
    assert ends == [(None, True)]
    assert sent == after + 1


async def test_a_refusal_that_nobody_takes_is_no_fault() -> None:
    def break_off(message: object) -> None:
        raise TimeoutError

    await collect(build(), "POST", "/v1/missing", on_message=break_off)
    await collect(build(), "GET", "/show/a", on_message=break_off)


async def test_closing_refuses_new_work_and_lets_running_work_end() -> None:
    release = asyncio.Event()
    began = asyncio.Event()

    async def slow(exchange: Exchange, body: bytes) -> None:
        began.set()
        await release.wait()
        await exchange.answer(200, b"{}")

    front = Front(daemon="gateway", hot={"/v1/slow": slow}, routes=[])
    running = asyncio.create_task(collect(front, "POST", "/v1/slow"))
    await began.wait()
    assert front.in_flight == 1
    front.close()
    refused = await collect(front, "POST", "/v1/slow")
    assert (refused.status, refused.json["error"]["code"]) == (503, "shutting_down")
    assert refused.header(b"retry-after") == b"15"
    assert not await front.drained(0.01)
    release.set()
    assert (await running).status == 200
    assert await front.drained(1)


async def test_the_end_of_each_hot_request_is_told_once() -> None:
    ends: list[tuple[str, str | None, bool]] = []

    def on_end(exchange: Exchange, error: CortexError | None) -> None:
        ends.append((exchange.path, error.code if error else None, exchange.client_gone))

    began = asyncio.Event()

    async def endless(exchange: Exchange, body: bytes) -> None:
        began.set()
        await asyncio.Event().wait()

    front = Front(
        daemon="gateway",
        hot={"/v1/echo": echo, "/v1/missing": missing, "/v1/endless": endless},
        routes=[],
        on_end=on_end,
    )
    await collect(front, "POST", "/v1/echo")
    await collect(front, "POST", "/v1/missing")
    leave = asyncio.Event()
    request = asyncio.create_task(collect(front, "POST", "/v1/endless", leave=leave))
    await began.wait()
    leave.set()
    await request
    assert ends == [
        ("/v1/echo", None, False),
        ("/v1/missing", "model_not_found", False),
        ("/v1/endless", None, True),
    ]
    assert front.in_flight == 0


async def test_work_ends_its_finally_blocks_before_the_request_is_over() -> None:
    steps: list[str] = []
    began = asyncio.Event()

    async def work(exchange: Exchange, body: bytes) -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            steps.append("freed")

    front = Front(
        daemon="g", hot={"/v1/w": work}, routes=[], on_end=lambda e, x: steps.append("ended")
    )
    leave = asyncio.Event()
    request = asyncio.create_task(collect(front, "POST", "/v1/w", leave=leave))
    await began.wait()
    leave.set()
    await request
    assert steps == ["freed", "ended"]


async def test_a_websocket_is_told_to_send_a_post_instead() -> None:
    handshake = (
        b"GET /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"x-request-id: r7\r\n\r\n"
    )
    async with serving(Front(daemon="gateway", hot={}, routes=[])) as endpoint:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(handshake)
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.read(1024)
        writer.close()
    assert head.startswith(b"HTTP/1.1 426 ")
    assert b"x-request-id: r7" in head.lower()
    assert b'"code":"websocket_not_supported"' in body


@pytest.mark.parametrize("path", ["/hot", "/things/1", "/nowhere"])
async def test_who_is_not_admitted_is_told_so_before_anything_else(path: str) -> None:
    def admit(exchange: Exchange) -> CortexError | None:
        return None if exchange.header(b"x-api-key") else InvalidApiKeyError()

    front = Front(
        daemon="gateway",
        hot={"/hot": echo},
        routes=[Route("/things/{id}", show)],
        max_body_mb=1,
        admit=admit,
    )
    refused = await collect(front, "POST", path, body=b"x" * 2_000_000)
    assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
    admitted = await collect(front, "POST", path, body=b"{}", headers=[(b"x-api-key", b"k")])
    assert admitted.status != 401
