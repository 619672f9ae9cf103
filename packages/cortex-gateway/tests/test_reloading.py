# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGHUP, on a real process: what is read again, what goes on meanwhile, and what a mistake does."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from cortex_core.catalogue import Catalogue, Model
from cortex_core.http.client import Client, RefusedError, read_all
from cortex_core.http.headers import Headers
from cortex_core.testing import make_state, serving
from cortex_gateway.config import Config, FleetSettings, GatewaySettings
from cortex_gateway.reloading import announce_declared, differences
from cortex_gateway.status import CatalogueStatus

SSE: Headers = [(b"content-type", b"text/event-stream")]
CHUNK = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
END = (
    b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)

pytestmark = pytest.mark.slow


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class Process:
    """A gateway of its own, and its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = free_ports(2)
        self.client = Client(f"http://127.0.0.1:{self.ports[0]}")
        self.said = ""
        self._process: asyncio.subprocess.Process | None = None

    def write(self, nodes: dict[str, str], models: tuple[str, ...] = (), more: str = "") -> None:
        """cortex.toml and models.toml."""
        listen = f"[gateway]\nlisten = '127.0.0.1:{self.ports[0]}'\nmetrics_listen = '127.0.0.1:{self.ports[1]}'\n"
        neurons = "".join(
            f"[[neurons]]\nname = '{name}'\nendpoint = '{endpoint}'\n"
            for name, endpoint in nodes.items()
        )
        text = f"{listen}{more}\n[poll]\ninterval_s = 0.1\n{neurons}"
        (self.folder / "cortex.toml").write_text(text)
        declared = "".join(f"[[models]]\nid = '{each}'\nharness = 'echo'\n" for each in models)
        (self.folder / "models.toml").write_text(declared)

    async def start(self) -> None:
        path = str(self.folder / "cortex.toml")
        code = (
            f"from pathlib import Path; from cortex_gateway.serve import main; main(Path({path!r}))"
        )
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE, env={**os.environ}
        )
        await self.until_said("gateway is up")

    async def hup(self, said: str) -> None:
        """Have it read everything again, and wait until it says how that went."""
        assert self._process
        self._process.send_signal(signal.SIGHUP)
        await self.until_said(said)

    async def until_said(self, what: str) -> None:
        assert self._process
        assert self._process.stderr
        async with asyncio.timeout(20):
            while what not in self.said:
                line = await self._process.stderr.readline()
                assert line, self.said
                self.said += line.decode()

    async def end(self) -> None:
        assert self._process
        self._process.terminate()
        assert self._process.stderr
        self.said += (await self._process.stderr.read()).decode()
        assert await self._process.wait() == 0
        await self.client.close()

    async def fleet(self, **fields: Any) -> Any:
        return await self.client.ask("GET", "/fleet", dict[str, Any], **fields)

    async def nodes(self) -> dict[str, tuple[bool, bool]]:
        """Of each node, whether it is up and whether it is drained."""
        return {n["name"]: (n["up"], n["drained"]) for n in (await self.fleet())["nodes"]}

    async def until(self, holds: Callable[[Any], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds(await self.fleet()):
                await asyncio.sleep(0.02)

    async def chat(self, model: str) -> tuple[str, bytes]:
        """The node that answered, and what."""
        body = json.dumps({"model": model, "messages": [], "stream": True}).encode()
        headers: Headers = [(b"content-type", b"application/json")]
        path = "/v1/chat/completions"
        async with self.client.open("POST", path, headers=headers, body=body) as reply:
            raw = await read_all(reply)
            if reply.status != 200:
                raise RefusedError(reply.status, raw)
            fields = {name.lower(): value for name, value in reply.headers}
            return fields[b"x-cortex-node"].decode(), raw


@asynccontextmanager
async def running(
    folder: Path, *neurons: Any, **files: Any
) -> AsyncIterator[tuple[Process, list[str]]]:
    """A gateway before the first of these neurons, and the endpoints of all."""
    process = Process(folder)
    async with AsyncExitStack() as stack:
        endpoints = [await stack.enter_async_context(serving(each)) for each in neurons]
        process.write({"a": endpoints[0]}, **files)
        await process.start()
        try:
            yield process, endpoints
        finally:
            await process.end()


async def test_nodes_come_and_go_and_a_stream_runs_on(fake: Any, tmp_path: Path) -> None:
    old, new = fake(make_state("m")), fake(make_state("m"))
    go_on = asyncio.Event()
    old.answer = lambda n: (200, SSE, [CHUNK, go_on, CHUNK, END])
    new.answer = lambda n: (200, SSE, [CHUNK, END])
    async with running(tmp_path, old, new) as (gateway, endpoints):
        asked = asyncio.create_task(gateway.chat("m"))
        await old.began.wait()
        gateway.write({"b": endpoints[1]})
        await gateway.hup("configuration read again")
        assert await gateway.nodes() == {"a": (True, True), "b": (True, False)}
        assert (await gateway.chat("m"))[0] == "b"  # nothing new goes to who left
        go_on.set()
        node, raw = await asked
        assert (node, raw.count(b'"content":"a"'), raw.endswith(b"data: [DONE]\n\n")) == (
            "a",
            2,
            True,
        )
        await gateway.until(lambda told: [n["name"] for n in told["nodes"]] == ["b"])
        assert (await gateway.chat("m"))[0] == "b"
    assert len(old.asked) == 1
    assert "node has left" in gateway.said


async def test_a_node_that_comes_back_before_its_work_has_ended_stays(
    fake: Any, tmp_path: Path
) -> None:
    neuron = fake(make_state("m"))
    go_on = asyncio.Event()
    neuron.answer = lambda n: (200, SSE, [CHUNK, go_on, END])
    async with running(tmp_path, neuron) as (gateway, endpoints):
        asked = asyncio.create_task(gateway.chat("m"))
        await neuron.began.wait()
        gateway.write({})
        await gateway.hup("left")
        gateway.write({"a": endpoints[0]})
        gateway.said = ""
        await gateway.hup("configuration read again")
        go_on.set()
        await asked
        assert (await gateway.chat("m"))[0] == "a"
        assert await gateway.nodes() == {"a": (True, False)}


async def test_an_endpoint_that_moved_is_asked_from_then_on(fake: Any, tmp_path: Path) -> None:
    old, new = fake(make_state("m")), fake(make_state("m"), make_state("n"))
    go_on = asyncio.Event()
    old.answer = lambda n: (200, SSE, [CHUNK, go_on, END])
    new.answer = lambda n: (200, SSE, [CHUNK, END])
    async with running(tmp_path, old, new) as (gateway, endpoints):
        asked = asyncio.create_task(gateway.chat("m"))
        await old.began.wait()
        gateway.write({"a": endpoints[1]})
        await gateway.hup("configuration read again")
        assert (await gateway.chat("n"))[0] == "a"
        go_on.set()
        assert (await asked)[1].endswith(b"data: [DONE]\n\n")
    assert (len(old.asked), len(new.asked)) == (1, 1)


async def test_the_catalogue_is_read_again(fake: Any, tmp_path: Path) -> None:
    neuron = fake()
    neuron.answer = lambda n: (200, SSE, [CHUNK, END])
    async with running(tmp_path, neuron) as (gateway, endpoints):
        with pytest.raises(RefusedError, match="404"):
            await gateway.chat("new")
        gateway.write({"a": endpoints[0]}, models=("new",))
        await gateway.hup("configuration read again")
        assert (await gateway.chat("new"))[0] == "a"
        (tmp_path / "models.toml").unlink()
        assert "no catalogue" not in gateway.said
        await gateway.hup("no catalogue")
    assert [load["model_id"] for load in neuron.loads] == ["new"]


async def test_a_mistake_changes_nothing_and_is_told_until_it_is_mended(
    fake: Any, tmp_path: Path
) -> None:
    neuron = fake(make_state("m"))
    neuron.answer = lambda n: (200, SSE, [CHUNK, END])
    async with running(tmp_path, neuron) as (gateway, endpoints):
        gateway.write({"a": endpoints[0]}, more="polcy = 'x'")
        await gateway.hup("configuration is wrong")
        told = (await gateway.fleet())["config_error"]
        assert "line 4: unknown key `gateway.polcy`. Did you mean `policy`?" in told
        assert (await gateway.chat("m"))[0] == "a"
        gateway.write({"a": endpoints[0]})
        (tmp_path / "models.toml").write_text("[[models]]\nid = 3\n")
        gateway.said = ""
        await gateway.hup("configuration is wrong")
        told = (await gateway.fleet())["config_error"]
        assert "models.toml, line 2" in told
        gateway.write({"a": endpoints[0]})
        await gateway.hup("configuration read again")
        assert (await gateway.fleet())["config_error"] is None


async def test_keys_change_and_are_never_said(fake: Any, tmp_path: Path) -> None:
    neuron = fake(make_state("m"))
    async with running(tmp_path, neuron) as (gateway, endpoints):
        neuron.secret = b"hush-secret"
        await gateway.until(lambda told: told["nodes"][0]["problem"] is not None)
        gateway.write({"a": endpoints[0]}, more="[fleet]\nkey = 'hush-key'")
        text = (tmp_path / "cortex.toml").read_text() + "secret = 'hush-secret'\n"
        (tmp_path / "cortex.toml").write_text(text)
        await gateway.hup("configuration read again")
        with pytest.raises(RefusedError, match="401"):
            await gateway.fleet()
        keyed = Client(gateway.client.endpoint, headers=[(b"x-api-key", b"hush-key")])
        (node,) = (await keyed.ask("GET", "/fleet", dict[str, Any]))["nodes"]
        await keyed.close()
        assert (node["up"], node["problem"]) == (True, None)
    assert "hush" not in gateway.said


async def test_what_needs_a_restart_is_named(fake: Any, tmp_path: Path) -> None:
    async with running(tmp_path, fake()) as (gateway, endpoints):
        gateway.write({"a": endpoints[0]}, more="max_body_mb = 3\n[loading]\nload_wait_s = 5")
        await gateway.hup("configuration read again")
    assert "settings wait for a restart" in gateway.said
    assert "gateway.max_body_mb" in gateway.said
    assert "loading.load_wait_s" in gateway.said


async def test_the_service_manager_is_told_of_start_reload_and_end(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0cortex-test-reload")
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@cortex-test-reload")
        async with running(tmp_path, fake()) as (gateway, _):
            await gateway.hup("configuration read again")
        heard = [manager.recv(200).decode() for _ in range(4)]
    assert [each.split("\n")[0] for each in heard] == [
        "READY=1",
        "RELOADING=1",
        "READY=1",
        "STOPPING=1",
    ]
    assert heard[1].split("\n")[1].startswith("MONOTONIC_USEC=")


def test_what_is_likely_not_meant_is_said() -> None:
    catalogue = Catalogue(models=[Model(id="m")], aliases={"a": "m", "b": "gone"})
    found = CatalogueStatus(path="/x", found=True, models=1, aliases=2)
    with structlog.testing.capture_logs() as logged:
        announce_declared(Config(), catalogue, found)
    (entry,) = logged
    assert entry["event"] == "this may be meant otherwise"
    assert "the alias 'b' names 'gone'" in entry["reason"]


def test_what_differs_is_named_where_it_counts_from_the_next_start_on() -> None:
    now = Config(
        gateway=GatewaySettings(listen="127.0.0.1:1"),
        fleet=FleetSettings(key="k"),
        models_config="other.toml",
        default_model="m",
    )
    assert differences(Config(), now) == ["gateway.listen", "default_model"]
    assert differences(now, now) == []
