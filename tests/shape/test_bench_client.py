# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of `tools/bench`: what came and when, however it was cut; and the processes that it asks."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from bench import processes, servers
from bench.answers import read_answer, read_length
from bench.client import ask, ask_well, open_connection
from bench.figures import FailedError
from bench.streams import measure_streams

EVENTS = [
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n: a comment\n\n',
    b'data: {"choices":[{"delta":{}}]}\n\n',
    b'data: {"choices":[],"usage":{"completion_tokens":1}}\n\n',
    b"data: [DONE]\n\n",
]
ERROR = b'data: {"error":{"code":"engine_died","message":"it has"}}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def plain(status: bytes, body: bytes, *fields: bytes) -> bytes:
    head = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *fields]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


STREAM = HEAD + b"".join(map(chunk, EVENTS)) + LAST


def test_a_stream_is_read_the_same_wherever_it_was_cut() -> None:
    first = STREAM.index(b'"Hi"') + len(b'"Hi"}}]}\n\n')
    for cut in range(1, len(STREAM)):
        answer = read_answer([(1.0, STREAM[:cut]), (2.0, STREAM[cut:])], is_whole=True)
        assert (answer.status, answer.tokens, answer.end_s, answer.error_s) == (200, 1, 2.0, None)
        assert answer.body == b"".join(EVENTS), cut
        # A chunk counts when all of it is there: what follows the event in its chunk belongs to it.
        whole = STREAM.index(b"\r\n", first) + 2
        assert answer.check_spoken(1) == (1.0 if cut >= whole else 2.0), cut


def test_the_role_is_no_token() -> None:
    pieces = [HEAD, *map(chunk, EVENTS)]
    arrivals = [(float(index), piece) for index, piece in enumerate(pieces)]
    assert read_answer(arrivals, is_whole=True).first_token_s == 2.0


def test_an_error_has_its_time() -> None:
    arrivals = [(1.0, HEAD + chunk(EVENTS[1])), (2.0, chunk(ERROR)), (3.0, LAST)]
    answer = read_answer(arrivals, is_whole=True)
    assert (answer.first_token_s, answer.error_s, answer.end_s) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("arrivals", "is_whole"),
    [
        ([HEAD + chunk(EVENTS[1])], False),
        ([HEAD + chunk(EVENTS[1]) + LAST], True),
        ([HEAD + chunk(EVENTS[0]) + chunk(EVENTS[3]) + LAST], True),
        ([plain(b"503 Service Unavailable", b"{}")], True),
    ],
    ids=["cut off", "without usage", "without a word", "refused"],
)
def test_a_stream_that_is_none_is_not_measured(arrivals: list[bytes], is_whole: bool) -> None:
    answer = read_answer([(1.0, data) for data in arrivals], is_whole=is_whole)
    with pytest.raises(FailedError, match="a stream of 1 tokens gave"):
        answer.check_spoken(1)


@pytest.mark.parametrize("came", [[], [(1.0, b"HTTP/1.1 200")], [(1.0, b"garbage\r\n\r\n")]])
def test_no_answer_is_told(came: list[tuple[float, bytes]]) -> None:
    with pytest.raises(FailedError, match="no answer"):
        read_answer(came, is_whole=False)


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-le", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", 40),
        (HEAD, 0),
    ],
)
def test_the_head_tells_how_long_it_is(start: bytes, length: int | None) -> None:
    assert read_length(start) == length


@pytest.mark.parametrize(
    ("answer", "again"),
    [
        (plain(b"503 Busy", b"", b"Retry-After: 2"), True),
        (plain(b"404 Not Found", b""), False),
        (plain(b"200 OK", b"", b"Retry-After: 2"), False),
    ],
)
def test_only_an_error_that_asks_for_patience_gets_it(answer: bytes, again: bool) -> None:
    assert read_answer([(1.0, answer)], is_whole=True).may_be_asked_again is again


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[int]:
    """A server on loopback that gives these answers to the requests of each connection, then closes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.rpartition(b"content-length: ")[2]))
            writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def body(number: int) -> dict[str, Any]:
    return {"number": number}


async def test_so_many_clients_ask_so_often() -> None:
    async with answering(STREAM, STREAM) as port:
        pace = await measure_streams(port, "/v1", body, streams=3, tokens=1, each=2)
    assert pace.tokens_per_s > 0
    assert 0 < pace.ttft_s < 6 / pace.tokens_per_s


async def test_a_client_that_is_cut_off_is_told() -> None:
    async with answering(STREAM) as port:
        with pytest.raises(FailedError, match="no answer"):
            await measure_streams(port, "/v1", body, streams=1, tokens=1, each=2)
        async with open_connection(port) as connection:
            await connection.ask("GET", "/")
            with pytest.raises(FailedError, match="no answer"):
                await connection.ask("GET", "/")


async def test_what_must_work_says_why_it_did_not() -> None:
    async with answering(plain(b"422 Unprocessable", b"no room")) as port:
        with pytest.raises(FailedError, match="POST /load gave 422: no room"):
            await ask_well(port, "POST", "/load", {})
        assert (await ask(port, "GET", "/")).status == 422


def python(*lines: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", "\n".join(lines)]


SLEEPER = python("import time", "time.sleep(60)")


async def fail_beside(folder: Path, seen: list[Path]) -> None:
    async with servers.open_server(lambda _: SLEEPER, {}, folder) as server:
        seen.append(Path(f"/proc/{server.pid}"))
        raise FailedError("measuring it failed")


async def test_a_server_ends_with_whoever_measures_it(tmp_path: Path) -> None:
    seen: list[Path] = []
    with pytest.raises(FailedError, match="measuring it failed"):
        await fail_beside(tmp_path, seen)
    assert not seen[0].exists()


async def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    command = python("import sys", "sys.exit('no such model')")
    async with servers.open_server(lambda _: command, {}, tmp_path) as server:
        with pytest.raises(FailedError, match=r"(?s)exit code 1.*no such model"):
            await server.until_well("GET", "/health")


async def test_a_server_without_an_engine_is_told(tmp_path: Path) -> None:
    async with servers.open_server(lambda _: SLEEPER, {}, tmp_path) as server:
        with pytest.raises(FailedError, match="0 processes"):
            processes.find_engine_core(server.pid)
