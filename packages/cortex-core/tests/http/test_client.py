# SPDX-License-Identifier: GPL-3.0-or-later
"""The client: on TCP and on unix sockets alike, every failure is one of our errors."""

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest

from cortex_core.errors import (
    FleetError,
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from cortex_core.http.client import Client, RefusedError, read_all
from cortex_core.testing import Scripted, serving

JSON = [(b"content-type", b"application/json")]


class Answer(msgspec.Struct):
    value: int


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/s"


async def test_what_is_asked_arrives_as_it_was_sent(address: str) -> None:
    upstream = Scripted(lambda n: (200, JSON, [b"{}"]))
    async with serving(upstream, address) as endpoint:
        client = Client(endpoint, headers=[(b"authorization", b"Bearer s")])
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


async def test_ask_decodes_the_answer(address: str) -> None:
    upstream = Scripted(lambda n: (200, JSON, [b'{"value": 3, "new": true}']))
    async with serving(upstream, address) as endpoint:
        client = Client(endpoint)
        assert await client.ask("POST", "/x", Answer, {"a": 1}) == Answer(value=3)
        await client.close()
    assert upstream.asked[0][3] == b'{"a":1}'


async def test_an_error_of_the_upstream_is_told_with_its_facts() -> None:
    body = b'{"error": {"message": "no", "code": "c", "kind": "k"}}'
    upstream = Scripted(lambda n: (422, JSON, [body]))
    async with serving(upstream) as endpoint:
        client = Client(endpoint)
        with pytest.raises(RefusedError) as caught:
            await client.ask("GET", "/x", Answer)
        await client.close()
    assert (caught.value.status, caught.value.code, caught.value.message) == (422, "c", "no")
    assert caught.value.facts["kind"] == "k"


@pytest.mark.parametrize("body", [b"<html>", b"", b"\xff", b'{"error": "flat"}', b"[]"])
async def test_an_error_in_any_other_shape_is_still_told(body: bytes) -> None:
    assert RefusedError(500, body).code is None


@pytest.mark.parametrize("body", [b"<html>", b'{"value": "three"}', b"", b"\xff"])
async def test_an_answer_that_does_not_fit_is_a_protocol_error(body: bytes) -> None:
    async with serving(Scripted(lambda n: (200, JSON, [body]))) as endpoint:
        client = Client(endpoint)
        with pytest.raises(UpstreamProtocolError):
            await client.ask("GET", "/x", Answer)
        await client.close()


async def test_silence_is_a_timeout() -> None:
    async with serving(Scripted(lambda n: (200, JSON, [b"{", None]))) as endpoint:
        client = Client(endpoint, idle_timeout_s=0.05)
        async with client.open("GET", "/x") as reply:
            assert await reply.read() == b"{"
            with pytest.raises(UpstreamTimeoutError):
                await reply.read()
        with pytest.raises(UpstreamTimeoutError):
            await client.ask("GET", "/x", Answer, timeout_s=0.05)
        await client.close()


async def test_an_upstream_that_speaks_garbage_is_a_protocol_error() -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(garbage, "127.0.0.1", 0)
    client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(FleetError):
        await client.ask("GET", "/x", Answer)
    await client.close()
    server.close()


async def test_an_upstream_that_is_not_there_is_a_connection_error(tmp_path: Path) -> None:
    for endpoint in ("http://127.0.0.1:9", f"unix:{tmp_path}/none"):
        client = Client(endpoint)
        with pytest.raises(UpstreamConnectionError):
            await client.ask("GET", "/x", Answer)
        await client.close()


def _kinds(root: type[BaseException]) -> list[type[BaseException]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _kinds(child))]


@pytest.mark.parametrize("kind", _kinds(aiohttp.ClientError), ids=lambda kind: kind.__name__)
def test_every_exception_of_aiohttp_becomes_one_of_ours(kind: type[BaseException]) -> None:
    client = Client("http://127.0.0.1:1")
    error = kind.__new__(kind)
    error.args = ("x",)
    if isinstance(error, OSError | aiohttp.ClientResponseError | aiohttp.InvalidURL):
        error = _Plain(kind)
    with pytest.raises(FleetError), client._mapped(1):
        raise error


def _Plain(kind: type[BaseException]) -> BaseException:  # noqa: N802 - makes a class
    """An exception of this kind whose text needs none of the arguments of its constructor."""
    plain = type(
        kind.__name__, (kind,), {"__init__": lambda self: None, "__str__": lambda self: "x"}
    )
    made: BaseException = plain()
    return made


def test_a_connection_that_does_not_come_about_is_no_silence() -> None:
    client = Client("http://127.0.0.1:1")
    with (
        pytest.raises(UpstreamConnectionError, match="no connection within 5 s"),
        client._mapped(1),
    ):
        raise aiohttp.ConnectionTimeoutError
