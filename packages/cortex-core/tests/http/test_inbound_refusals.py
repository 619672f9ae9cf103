# SPDX-License-Identifier: GPL-3.0-or-later
"""What is no HTTP/1.1, or what requests are smuggled by, is refused; what came before it is answered."""

import msgspec
import pytest

from cortex_core.http.exchange import Receive, Scope, Send
from cortex_core.http.testing import ask, tell

HOST = b"host: x\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"GET / HTTP/1.1\n" + HOST + b"\r\n", "CRLF"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc", "Content-Length"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"content-length: +3\r\n\r\nabc", "Content-Length"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n", "Content-Length"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: gzip\r\n\r\nabc", "Transfer-Encoding"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n2\nab\n0\n\n", "chunk"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", "chunk"),
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", "header"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n c\r\n\r\n", "header"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"a: \x00\r\n\r\n", "header"),
        (b"GET / HTTP/1.1\r\n\r\n", "Host"),
        (b"GET / HTTP/3.7\r\n\r\n", "version"),
        (b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "method"),  # TLS, to a port without
        (b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 300 + b"\r\n", "256 headers"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"a: " + b"b" * 100_000, "65536 bytes"),
        (b"GET /" + b"a" * 100_000, "65536 bytes"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n0\r\na: " + b"b" * 1_000_000, "65536 bytes"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n1;" + b"b" * 1_000_000, "65536 bytes"),
    ],
)  # fmt: skip
async def test_what_is_no_http_is_400_and_a_closed_connection(
    request_bytes: bytes, reason: str
) -> None:
    head, _, body = (await ask(tell, request_bytes)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    error = msgspec.json.decode(body)["error"]
    assert error["code"] == "invalid_request_body"
    assert reason.lower() in error["message"].lower()


async def test_requests_before_a_broken_one_are_answered_first() -> None:
    got = await ask(tell, b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\nhost: x\n\n")
    assert got.index(b'"path":"/ok"') < got.index(b"HTTP/1.1 400")


async def test_a_body_that_breaks_behind_a_whole_request_is_dropped_with_its_request() -> None:
    served: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope.get("path", ""))
        await tell(scope, receive, send)

    second = b"POST /broken HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    got = await ask(app, b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n" + second)
    assert got.count(b"HTTP/1.1 200") == got.count(b"HTTP/1.1 400") == 1
    assert [path for path in served if path] == ["/ok"]
