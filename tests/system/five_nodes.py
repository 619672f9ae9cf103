# SPDX-License-Identifier: GPL-3.0-or-later
"""Five neurons behind fault proxies, one gateway, and clients of it that speak two dialects and check what they read."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fault_proxy import FaultProxy

from cortex_core import anthropic, errors, sse
from cortex_core.http.client import Client, read_all
from cortex_core.http.headers import find

NAMES = "abcde"
TEXT = "one two three"
# One node that is told to fail, and what is there alone, there and elsewhere, and elsewhere.
FAULTY = "c"
ALONE = "echo/alone"
FLOWING = "echo/flowing?tokens=100000&token_s=0.02"
SHARED = "echo/shared"
OTHER = "echo/other"
PINNED = {ALONE: ["c"], FLOWING: ["c"], SHARED: ["c", "d"], OTHER: ["e"]}
CATALOGUE = "".join(
    f'[[models]]\nid = "{model}"\nharness = "echo"\npinned_on = {json.dumps(nodes)}\n'
    for model, nodes in PINNED.items()
)
# A whole answer is one silence, which may last twelve times as long, after a wait for its turn.
IDLE_S, WAIT_S = 0.6, 0.4
WHOLE_S = 12 * IDLE_S + WAIT_S
# Looks at nodes that are just under way. A fault leaves more behind, if it leaves anything, and each row adds to it.
SLACK = 6


class Outcome(NamedTuple):
    """How a request ended.

    Attributes:
        code: of its error, wherever that was told; None: it has its whole answer.
        is_stream: it had begun as one.
    """

    code: str | None
    text: str
    node: str | None
    duration_s: float
    is_stream: bool


def chat(model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Path and body of a question in OpenAI's dialect."""
    messages = [{"role": "user", "content": TEXT}]
    return "/v1/chat/completions", {"model": model, "messages": messages, "stream": stream}


def message(model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """The same in Anthropic's."""
    path, body = "/v1/messages", chat(model, stream=stream)[1]
    return path, {**body, "max_tokens": 1_000_000}


DIALECTS = (chat, message)


async def ask(
    endpoint: str, path: str, body: dict[str, Any], flows: asyncio.Event | None = None
) -> Outcome:
    """Ask once, over a connection of its own. What is no proper answer and no proper error fails the test.

    `flows` is set when something of the answer's text has come.
    """
    began_s = time.monotonic()
    client = Client(endpoint, idle_timeout_s=2 * WHOLE_S)
    try:
        data, fields = json.dumps(body).encode(), [(b"content-type", b"application/json")]
        async with client.open("POST", path, headers=fields, body=data) as reply:
            raw = b""
            while part := await reply.read():
                raw += part
                if flows and TEXT.encode().split()[-1] in raw:
                    flows.set()
        node = (find(reply.headers, b"x-cortex-node") or b"").decode() or None
        if reply.is_event_stream:
            code, text = read_stream(path, raw)
        else:
            retry_after = find(reply.headers, b"retry-after")
            code, text = read_whole(path, reply.status, retry_after, raw)
    finally:
        await client.close()
    return Outcome(code, text, node, time.monotonic() - began_s, reply.is_event_stream)


def read_whole(
    path: str, status: int, retry_after: bytes | None, raw: bytes
) -> tuple[str | None, str]:
    """Code and text; the status and `Retry-After` fit the code, and the envelope the dialect."""
    answer = json.loads(raw)
    if status == 200:
        if path == "/v1/messages":
            return None, answer["content"][-1]["text"]
        return None, answer["choices"][0]["message"]["content"]
    error = answer["error"]
    expected = errors.status_of(error["code"])
    assert expected is not None, raw
    if path == "/v1/messages":
        assert (answer["type"], error["type"]) == ("error", anthropic.kind_of(expected)), raw
        expected = anthropic.status_of(expected)
    assert status == expected, raw
    # all that a fault of a node can lead to may pass
    assert retry_after is not None, raw
    assert int(retry_after) >= 1
    return error["code"], ""


def read_stream(path: str, raw: bytes) -> tuple[str | None, str]:
    """Code and text; an error stands at the end, and the stream has its regular one."""
    splitter = sse.Splitter()
    events = [sse.read_event(each) for each in splitter.feed(raw)]
    assert not splitter.is_waiting, raw[-300:]
    said = [event.data for event in events if event.data is not None]
    return read_messages(said) if path == "/v1/messages" else read_chunks(said)


def read_chunks(said: list[bytes]) -> tuple[str | None, str]:
    """OpenAI's events."""
    assert said[-1] == b"[DONE]", said[-3:]
    chunks, text = _decode(said[:-1]), ""
    for index, chunk in enumerate(chunks):
        if "error" in chunk:
            assert index == len(chunks) - 1, said[-3:]
            return chunk["error"]["code"], text
        text += chunk["choices"][0]["delta"].get("content") or ""
    assert chunks[-1]["choices"][0]["finish_reason"], said[-3:]
    return None, text


def read_messages(said: list[bytes]) -> tuple[str | None, str]:
    """Anthropic's events."""
    events = _decode(said)
    text = "".join(
        event["delta"]["text"] for event in events if event["type"] == "content_block_delta"
    )
    kinds = [event["type"] for event in events]
    assert kinds.count("error") + kinds.count("message_stop") == 1, said[-3:]
    if kinds[-1] == "error":
        return events[-1]["error"]["code"], text
    assert kinds[-1] == "message_stop", said[-3:]
    return None, text


def _decode(said: list[bytes]) -> list[dict[str, Any]]:
    """The events that are objects: what a spoilt stream had before its error, nobody vouches for."""
    found = []
    for each in said:
        with contextlib.suppress(ValueError):
            event = json.loads(each)
            found += [event] if isinstance(event, dict) else []
    return found


class Five:
    """The fleet of five, and what became of it."""

    def __init__(
        self, fleet: Any, gateway: Any, neurons: list[Any], ways: list[FaultProxy]
    ) -> None:
        self.fleet = fleet
        self.gateway = gateway
        self.neurons = dict(zip(NAMES, neurons, strict=True))
        self.ways = dict(zip(NAMES, ways, strict=True))
        self._quiet = (0, 0.0)

    async def burst(self, model: str, count: int = 3) -> list[Outcome]:
        """As many in each dialect, streamed and not, at once."""
        asked = [read(model, stream=stream) for read in DIALECTS for stream in (False, True)]
        asks = (ask(self.gateway.endpoint, path, body) for path, body in asked * count)
        return await asyncio.gather(*asks)

    async def node(self, name: str = FAULTY) -> dict[str, Any]:
        """What GET /fleet tells of a node."""
        told = await self.gateway.get("/fleet")
        found: dict[str, Any] = next(node for node in told["nodes"] if node["name"] == name)
        return found

    async def until_node(self, *, up: bool, models: int = 0, within_s: float) -> None:
        """Wait until the last look at the faulty node found it up, with so many models loaded; or until it counts as down."""

        def holds(told: dict[str, Any]) -> bool:
            node = next(node for node in told["nodes"] if node["name"] == FAULTY)
            loaded = [model for model in node["models"] if model["status"] == "loaded"]
            return node["up"] is up and (not up or not node["misses"]) and len(loaded) == models

        await self.gateway.until("/fleet", holds, within_s)

    async def locations(self, model: str) -> list[str]:
        """Where GET /v1/models says that a model is loaded."""
        listed = await self.gateway.get("/v1/models")
        (found,) = [each for each in listed["data"] if each["id"] == model]
        there = [at["node"] for at in found["locations"] if at["status"] == "loaded"]
        assert found["loaded"] is bool(there)
        return there

    async def note_quiet(self) -> None:
        """Remember what the gateway has open while nobody asks."""
        seen = [await self._open() for _ in range(20)]
        self._quiet = (min(fds for fds, _ in seen), min(tasks for _, tasks in seen))

    async def until_quiet(self) -> None:
        """Wait until nothing more is open, and nothing is counted as in flight or waiting."""
        told = await self.gateway.until("/fleet", lambda told: not told["in_flight"], 2)
        assert (told["waiting"], told["loads"]) == ([], [])
        seen = self._quiet
        try:
            async with asyncio.timeout(10):
                while True:
                    seen = await self._open()
                    if all(
                        now <= then + SLACK for now, then in zip(seen, self._quiet, strict=True)
                    ):
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{seen} descriptors and tasks, {self._quiet} before") from None

    async def _open(self) -> tuple[int, float]:
        """File descriptors and tasks of the gateway."""
        async with self.gateway.metrics.open("GET", "/metrics") as reply:
            lines = (await read_all(reply)).decode().splitlines()
        (tasks,) = [line.split()[1] for line in lines if line.startswith("cortex_tasks ")]
        return len(list(Path(f"/proc/{self.gateway.pid}/fd").iterdir())), float(tasks)


# What befalls the faulty node, and what ends that.


async def kill(five: Five) -> None:
    """Its daemon is killed, and its port takes nothing."""
    neuron = five.neurons[FAULTY]
    neuron.process.kill()
    await neuron.process.wait()
    five.ways[FAULTY].refuse()


async def stop(five: Five) -> None:
    """Its daemon stands still."""
    five.neurons[FAULTY].process.send_signal(signal.SIGSTOP)


async def refuse(five: Five) -> None:
    """Its port takes nothing more."""
    five.ways[FAULTY].refuse()


async def heal(five: Five) -> None:
    """It is well again, as a new process where the old one was killed."""
    neuron = five.neurons[FAULTY]
    if neuron.process.returncode is None:
        neuron.process.send_signal(signal.SIGCONT)
    else:
        five.neurons[FAULTY] = await five.fleet.again(neuron)
    await five.ways[FAULTY].heal()


@asynccontextmanager
async def open_five(open_fleet: Any) -> AsyncIterator[Five]:
    """All of them up, and each model where it belongs."""
    async with open_fleet() as fleet:
        neurons = await asyncio.gather(*(fleet.neuron(name, _config(name)) for name in NAMES))
        ways = [FaultProxy(neuron.endpoint) for neuron in neurons]
        try:
            for way in ways:
                await way.listen()
            for neuron in neurons:
                await neuron.until("/health", lambda h: h["activation"]["state"] == "ready", 20)
            gateway = await fleet.gateway(
                *(way.endpoint for way in ways),
                models=CATALOGUE,
                CORTEX_GATEWAY__IDLE_TIMEOUT_S=str(IDLE_S),
            )
            five = Five(fleet, gateway, neurons, ways)
            await five.burst(SHARED)
            await five.note_quiet()
            yield five
        finally:
            for way in ways:
                await way.close()


def _config(node: str) -> str:
    """A neuron that has its models from the start."""
    text = f'[[harnesses]]\nname = "echo"\n[admission]\nmax_wait_s = {WAIT_S}\n'
    for model, nodes in PINNED.items():
        if node in nodes:
            text += f'[[default_models]]\nmodel_id = "{model}"\nharness = "echo"\n'
    return text
