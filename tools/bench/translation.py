# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures what a translated chunk costs the gateway against an untranslated one: `python tools/bench/translation.py --help`."""

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

# Run as a script, this folder is searched first, and files found where packages are meant.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import msgspec
import tree
from bench import machine, page, table
from bench.client import HOST, ask_well, open_connection
from bench.figures import Bounds, FailedError, Measured
from bench.servers import Server, open_server, program
from bench.table import Row

from cortex_core.node import Health, ModelState
from cortex_core.testing import make_discovery

PAGE = tree.ROOT / "docs/benchmarks.md"
NAME = "translation"
MODEL = "m"
# Per stream, as of a model of some size.
CHUNKS_PER_S = 30.0
_CHAT = {"model": MODEL, "stream": True, "max_tokens": 9999}
_TURNS = [{"role": "user", "content": "Tell me a story."}]
# What is asked: path and body. The first is what the others are compared with.
PLAIN = ("/v1/chat/completions", {**_CHAT, "messages": _TURNS})
WAYS = {
    "anthropic": ("/v1/messages", {**_CHAT, "messages": _TURNS}),
    "responses": ("/v1/responses", {"model": MODEL, "stream": True, "input": _TURNS}),
}
BOUNDS = Bounds(must=1.5, goal=1.25)
ROWS = [
    Row(key=key, part=key, label=f"processor time per chunk, {label}", unit="ms", bounds=BOUNDS)
    for key, label in (
        ("anthropic", "as Anthropic's Messages"),
        ("responses", "as OpenAI's Responses"),
    )
]
_HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: %b\r\n\r\n"
_CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1790000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
)
_END = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b': usage {"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}\n\ndata: [DONE]\n\n'
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Neuron:
    """What the gateway asks: a neuron of one model that speaks chat alone, at an even pace."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
        self._told = {
            "/discovery": msgspec.json.encode(make_discovery(harnesses=("echo",))),
            "/health": msgspec.json.encode(Health(uptime_secs=1.0)),
            "/models": msgspec.json.encode([ModelState(id=MODEL, harness="echo", status="loaded")]),
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests until one is answered, which ends the connection; as all servers it goes on after a 404."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not await self._answer(await _read_path(reader), writer):
                await writer.drain()
            await writer.drain()
        writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> bool:
        if path in self._told:
            writer.write(_HEAD % b"application/json" + self._told[path])
        elif path == PLAIN[0]:
            await self._stream(writer)
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return False
        return True

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(_HEAD % b"text/event-stream")
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        for _ in range(self._chunks):
            writer.write(_CHUNK)
            due_s += 1 / CHUNKS_PER_S
            await asyncio.sleep(due_s - loop.time())
        writer.write(_END)


async def _read_path(reader: asyncio.StreamReader) -> str:
    """The path of the next request, which is read to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    await reader.readexactly(int(length[1]) if length else 0)
    return head.split(b" ", 2)[1].decode()


@asynccontextmanager
async def open_gateway(chunks: int, folder: Path) -> AsyncIterator[Server]:
    """A gateway before such a neuron, which has seen it."""
    listening = await asyncio.start_server(Neuron(chunks).serve, HOST, 0)
    port = listening.sockets[0].getsockname()[1]
    config = folder / "cortex.toml"

    def command(own_port: int) -> list[str]:
        config.write_text(
            f'[gateway]\nlisten = "{HOST}:{own_port}"\nmetrics_listen = "{HOST}:0"\n'
            f'[[neurons]]\nname = "a"\nendpoint = "http://{HOST}:{port}"\n'
        )
        return [program("cortex"), "serve", "--config", str(config)]

    async with listening, open_server(command, {}, folder) as server:
        await server.until_well("GET", f"/v1/models/{MODEL}")
        yield server


async def measure_way(
    server: Server, way: tuple[str, dict[str, object]], streams: int, chunks: int
) -> float:
    """Seconds of the gateway's processor time per chunk.

    Raises:
        FailedError: a stream did not come whole.
    """
    path, body = way
    async with contextlib.AsyncExitStack() as stack:
        open_ = [
            await stack.enter_async_context(open_connection(server.port)) for _ in range(streams)
        ]
        before_s = _processor_s(server.pid)
        found = await asyncio.gather(*(each.collect("POST", path, body) for each in open_))
        spent_s = _processor_s(server.pid) - before_s
    for collected in found:
        answer = collected.read()
        if not collected.is_whole or answer.body.count(b" token") < chunks:
            raise FailedError(f"{path}: a stream of {len(answer.body)} bytes is not whole")
    return spent_s / (streams * chunks)


def _processor_s(pid: int) -> float:
    """Processor time of a process, by the scheduler's own count, which is finer than that of ticks."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


async def measure(rounds: int, streams: int, chunks: int) -> dict[str, Measured]:
    """Each way beside the plain one, in the same rounds."""
    plain: list[float] = []
    translated: dict[str, list[float]] = {key: [] for key in WAYS}
    with tempfile.TemporaryDirectory(prefix="cxb") as folder:
        async with open_gateway(chunks, Path(folder)) as server:
            for path, body in (PLAIN, *WAYS.values()):
                await ask_well(server.port, "POST", path, body)  # what is done but once
            for _ in range(rounds):
                plain.append(await measure_way(server, PLAIN, streams, chunks))
                for key, way in WAYS.items():
                    translated[key].append(await measure_way(server, way, streams, chunks))
    return {key: Measured(ours=found, theirs=plain) for key, found in translated.items()}


def main() -> None:
    """Measure, print, and write where asked to. Exit code 1: the bound is not kept, or it could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each figure (9)")
    parser.add_argument("--streams", type=int, default=32, help="streams at once (32)")
    parser.add_argument("--chunks", type=int, default=60, help="chunks of each stream (60)")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    given = parser.parse_args()
    try:
        found = asyncio.run(measure(given.rounds, given.streams, given.chunks))
    except FailedError as failed:
        sys.exit(str(failed))
    cells = table.build_cells(ROWS, found)
    print(table.write_text(cells))
    if given.write:
        text = machine.write_section(given.rounds, machine.look(), table.write_markdown(cells))
        PAGE.write_text(page.replace_marked(PAGE.read_text(), NAME, text))
    if table.is_missed(ROWS, found):
        sys.exit(1)


if __name__ == "__main__":
    main()
