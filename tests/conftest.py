# SPDX-License-Identifier: GPL-3.0-or-later
"""Daemons as an operator runs them: real processes on loopback, their logs kept, everything ended."""

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cortex_core.http.client import Client, read_all
from cortex_core.http.headers import Headers

START_S = 60.0
STOP_S = 15.0
# Whose environment has the daemons, where a test runs in another.
PYTHON = os.environ.get("DAEMON_PYTHON", sys.executable)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Daemon:
    """A running daemon: its process, where it is reached, what it logged."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        log: Path,
        endpoint: str,
        started: tuple[str, str, dict[str, str]],
    ) -> None:
        self.process = process
        self.log_path = log
        self.endpoint = endpoint
        self.client = Client(endpoint)
        self.metrics = self.client  # a gateway has a port of its own for them
        self.started = started

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    async def get(self, path: str) -> Any:
        return await self.client.ask("GET", path, object)

    async def post(
        self, path: str, body: object, headers: Headers | None = None
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers and body of a POST, whatever they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = [(b"content-type", b"application/json"), *(headers or [])]
        async with self.client.open("POST", path, headers=fields, body=data) as reply:
            raw = await read_all(reply)
            return reply.status, {n.lower(): v for n, v in reply.headers}, raw

    async def chat(self, model: str, text: str = "hello there", **fields: Any) -> dict[str, Any]:
        """A whole chat answer; fails on any other status than 200."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        status, _, raw = await self.post("/v1/chat/completions", body)
        assert status == 200, raw
        answer: dict[str, Any] = json.loads(raw)
        return answer

    async def counts(self, name: str, label: str = "model") -> dict[str, float]:
        """The values of one metric, added up by one of its labels."""
        async with self.metrics.open("GET", "/metrics") as reply:
            lines = (await read_all(reply)).decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if line.startswith(f"{name}{{"):
                labels, value = line.rsplit(" ", 1)
                whose = labels.split(f'{label}="')[1].split('"')[0]
                found[whose] = found.get(whose, 0.0) + float(value)
        return found

    async def until(self, path: str, holds: Any, within_s: float = 5.0) -> Any:
        """Poll a path until `holds(answer)`; fails with the last answer when time is up."""
        answer = None
        try:
            async with asyncio.timeout(within_s):
                while True:
                    answer = await self.get(path)
                    if holds(answer):
                        return answer
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{path} still says {answer}\n{self.log[-3000:]}") from None

    async def stop(self, with_signal: int = signal.SIGTERM) -> int:
        """End it; returns its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(with_signal)
        async with asyncio.timeout(STOP_S):
            return await self.process.wait()


class Fleet:
    """Starts daemons, and ends them with the test."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack

    async def neuron(
        self, name: str = "a", config: str = '[[harnesses]]\nname = "echo"\n', **environ: str
    ) -> Daemon:
        port = free_port()
        text = f'listen = "127.0.0.1"\nport = {port}\n{config}'
        return await self._start(name, "neuron", text, f"http://127.0.0.1:{port}", environ)

    async def gateway(
        self, *neurons: Daemon | str, models: str = "", config: str = "", **environ: str
    ) -> Daemon:
        port, metrics = free_port(), free_port()
        (self.folder / "models.toml").write_text(models)
        text = config + (
            f'\n[gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "127.0.0.1:{metrics}"\n'
            "[poll]\ninterval_s = 0.2\ntimeout_s = 1\n"
        )
        for index, neuron in enumerate(neurons):
            endpoint = neuron if isinstance(neuron, str) else neuron.endpoint
            text += f'[[neurons]]\nname = "{"abcdef"[index]}"\nendpoint = "{endpoint}"\n'
        gateway = await self._start(
            "gateway", "cortex_cli", text, f"http://127.0.0.1:{port}", environ
        )
        gateway.metrics = Client(f"http://127.0.0.1:{metrics}")
        self._stack.push_async_callback(gateway.metrics.close)
        return gateway

    async def again(self, ended: Daemon) -> Daemon:
        """Start a daemon that has ended once more: the same files, the same address."""
        name, module, environ = ended.started
        daemon = await self._run(name, module, ended.endpoint, environ)
        if ended.metrics is not ended.client:
            daemon.metrics = ended.metrics
        return daemon

    async def _start(
        self, name: str, module: str, config: str, endpoint: str, environ: dict[str, str]
    ) -> Daemon:
        (self.folder / f"{name}.toml").write_text(config)
        return await self._run(name, module, endpoint, environ)

    async def _run(self, name: str, module: str, endpoint: str, environ: dict[str, str]) -> Daemon:
        path = self.folder / f"{name}.toml"
        log = self.folder / f"{name}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                PYTHON,
                *("-m", module, "serve", "--config", str(path)),
                stdout=file,
                stderr=file,
                stdin=asyncio.subprocess.DEVNULL,
                env={
                    **os.environ,
                    "STATE_DIRECTORY": str(self.folder / f"{name}-state"),
                    **environ,
                },
            )
        daemon = Daemon(process, log, endpoint, (name, module, environ))
        self._stack.push_async_callback(_end, daemon)
        await _until_up(daemon)
        return daemon


async def _until_up(daemon: Daemon) -> None:
    async with asyncio.timeout(START_S):
        while True:
            if daemon.process.returncode is not None:
                raise AssertionError(f"the daemon ended:\n{daemon.log}")
            try:
                await daemon.get("/health")
            except Exception:  # noqa: BLE001 - not up yet, whatever it says
                await asyncio.sleep(0.02)
            else:
                return


async def _end(daemon: Daemon) -> None:
    await daemon.client.close()
    try:
        await daemon.stop()
    except TimeoutError:
        daemon.process.kill()
        await daemon.process.wait()


@asynccontextmanager
async def _fleet() -> AsyncIterator[Fleet]:
    # Not tmp_path: paths of unix sockets have room for about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="cx") as folder:
        async with AsyncExitStack() as stack:
            yield Fleet(Path(folder), stack)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with _fleet() as made:
        yield made


@pytest.fixture(scope="session")
def open_fleet() -> Any:
    """For daemons that serve a whole file, or live in another loop: `async with open_fleet() as fleet`."""
    return _fleet


_DEMO = """
[harness.vllm]
warm_spare = false
[[default_models]]
model_id = "helexa/demo"
harness = "vllm"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo_fleet() -> AsyncIterator[tuple[Daemon, Daemon]]:
    """A neuron with the demo model on real vLLM, and a gateway; one for a whole file, as it takes seconds to come up."""
    async with _fleet() as made:
        neuron = await made.neuron(config=_DEMO)
        gateway = await made.gateway(neuron)
        await neuron.until("/health", lambda h: h["activation"]["state"] == "ready", 300)
        await gateway.until("/v1/models", lambda models: models["data"][0]["loaded"], 10)
        yield neuron, gateway
