# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon as operators start it: a process, its output, its exit code."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cortex_core.http.client import Client, read_all
from neuron.command import main, read_settings
from neuron.fake_nvml import TWO_GPUS, FakeNvml

pytestmark = pytest.mark.slow

CONFIG = 'listen = "127.0.0.1"\nport = 0\nrun_dir = "{folder}/run"\nstate_dir = "{folder}/state"\n'
ECHO = '[[harnesses]]\nname = "echo"\n'
MODEL = '[[default_models]]\nharness = "echo"\nmodel_id = "{}"\n'
SLOW = "echo/slow?tokens=20&token_s=0.05"


class Daemon:
    """A running daemon. Its endpoint is read from its log."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, log: list[str]) -> None:
        self.process = process
        self.folder = folder
        self.log = log
        fields = json.loads(log[-1])
        self.found = fields
        self.client = Client(f"http://{fields['address']}")

    async def get(self, path: str) -> Any:
        return await self.client.ask("GET", path, object)

    async def post(self, path: str, body: object) -> tuple[int, bytes]:
        data = json.dumps(body).encode()
        async with self.client.open("POST", path, body=data) as reply:
            return reply.status, await read_all(reply)

    async def ready(self) -> Any:
        """Its health, when the default models were all tried."""
        async with asyncio.timeout(10):
            while (health := await self.get("/health"))["activation"]["state"] != "ready":
                await asyncio.sleep(0.01)
        return health

    def hosts(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    async def end(self, with_signal: int) -> int:
        self.process.send_signal(with_signal)
        async with asyncio.timeout(10):
            return await self.process.wait()


Start = Callable[..., Awaitable[Daemon]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nt")))

        async def start_one(config: str = ECHO, **environ: str) -> Daemon:
            path = folder / "neuron.toml"
            path.write_text(CONFIG.format(folder=folder) + config)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "neuron", "serve", "--config", str(path)),
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **environ},
            )
            stack.push_async_callback(_reap, process)
            daemon = Daemon(process, folder, await _read_until_serving(process))
            stack.push_async_callback(daemon.client.close)
            return daemon

        yield start_one


async def _reap(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def _read_until_serving(process: asyncio.subprocess.Process) -> list[str]:
    assert process.stderr
    lines: list[str] = []
    async with asyncio.timeout(10):
        while line := (await process.stderr.readline()).decode():
            lines.append(line)
            if "neuron serves" in line:
                return lines
    raise AssertionError("".join(lines))


async def until_gone(pids: list[int]) -> None:
    async with asyncio.timeout(5):
        while any(_is_alive(pid) for pid in pids):
            await asyncio.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


async def test_it_says_what_it_found_and_holds_no_engine_library(start: Start) -> None:
    daemon = await start(ECHO + '[[harnesses]]\nname = "vllm"\n')
    assert daemon.found["harnesses"] == ["echo", "vllm"]
    assert daemon.found["version"]
    found = await daemon.get("/discovery")
    assert found["harnesses"] == ["echo", "vllm"]
    if found["driver_version"] is None and found["cuda_unavailable_reason"] is None:
        assert [device["uuid"] for device in found["devices"]] == ["cpu"]
        assert any("no NVIDIA driver" in line for line in daemon.log)
    maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()  # noqa: ASYNC240
    assert "torch" not in maps
    assert "vllm" not in maps


def test_nothing_that_it_imports_brings_an_engine() -> None:
    code = (
        "import sys, neuron.command, neuron.harnesses.vllm, neuron.harnesses.echo\n"
        "print([m for m in ('vllm', 'torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"


async def test_default_models_come_up_in_order_and_one_that_fails_stops_no_other(
    start: Start,
) -> None:
    ids = ["echo/a", "echo/bad?fail=load", "echo/b"]
    daemon = await start(ECHO + "".join(MODEL.format(model_id) for model_id in ids))
    assert (await daemon.get("/health"))["activation"]["state"] == "pre_warming"
    activation = (await daemon.ready())["activation"]
    assert activation["completed"] == ["echo/a", "echo/b"]
    (failed,) = activation["failed"]
    assert failed["model_id"] == "echo/bad?fail=load"
    assert "asked to fail" in failed["error"]


@pytest.mark.parametrize("to_all", [False, True], ids=["to the daemon", "to the whole service"])
async def test_sigterm_lets_running_answers_end_and_refuses_new_ones(
    start: Start, to_all: bool
) -> None:
    daemon = await start(ECHO + MODEL.format(SLOW))
    await daemon.ready()
    hosts = daemon.hosts()
    body = {"model": SLOW, "prompt": "a", "stream": True}
    running = asyncio.create_task(daemon.post("/v1/completions", body))
    async with asyncio.timeout(5):
        while not (await daemon.get("/health"))["models"][0]["running"]:
            await asyncio.sleep(0.01)
    for pid in [daemon.process.pid, *(hosts if to_all else [])]:
        os.kill(pid, signal.SIGTERM)
    async with asyncio.timeout(2):
        while (answer := await daemon.post("/v1/completions", body))[0] == 200:
            pass
    assert (answer[0], json.loads(answer[1])["error"]["code"]) == (503, "shutting_down")
    status, raw = await running
    assert (status, raw.endswith(b"data: [DONE]\n\n"), b"error" in raw) == (200, True, False)
    async with asyncio.timeout(5):
        assert await daemon.process.wait() == 0
    await until_gone(hosts)
    assert [path.name for path in (daemon.folder / "run").iterdir()] == ["lock"]


async def test_a_drain_is_bounded(start: Start) -> None:
    model = "echo/long?tokens=100000&token_s=0.01"
    daemon = await start(ECHO + MODEL.format(model), NEURON_DRAIN_S="0.2")
    await daemon.ready()
    body = {"model": model, "prompt": "a", "stream": True}
    running = asyncio.create_task(daemon.post("/v1/completions", body))
    async with asyncio.timeout(5):
        while not (await daemon.get("/health"))["models"][0]["running"]:
            await asyncio.sleep(0.01)
    began_s = time.monotonic()
    assert await daemon.end(signal.SIGTERM) == 0
    assert time.monotonic() - began_s < 5
    _, raw = await running
    assert b'"code":"engine_died"' in raw
    assert raw.endswith(b"data: [DONE]\n\n")


async def test_a_load_under_way_does_not_hold_up_the_end(start: Start) -> None:
    daemon = await start(ECHO + MODEL.format("echo/m?load_s=60"))
    body = {"model_id": "echo/m?load_s=60", "harness": "echo"}
    waiting = asyncio.create_task(daemon.post("/models/load", body))
    async with asyncio.timeout(5):
        while not daemon.hosts():
            await asyncio.sleep(0.01)
    daemon.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        assert await daemon.process.wait() == 0
        status, raw = await waiting
    assert (status, json.loads(raw)["error"]["code"]) == (503, "shutting_down")


async def test_a_driver_that_hangs_does_not_hold_up_the_end(start: Start, tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.say({**TWO_GPUS, "1.power": "~"})
    daemon = await start(ECHO, **fake.environ())
    await until_it_hangs(fake)
    await daemon.ready()
    assert await daemon.end(signal.SIGTERM) == 0


async def test_a_driver_that_hangs_from_the_start_does_not_hold_up_the_end(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.say({**TWO_GPUS, "count": "~"})
    with tempfile.TemporaryDirectory(prefix="nt") as folder:
        path = Path(folder) / "neuron.toml"
        path.write_text(CONFIG.format(folder=folder) + ECHO)
        command = (sys.executable, "-m", "neuron", "serve", "--config", str(path))
        environ = {**os.environ, **fake.environ()}
        process = await asyncio.create_subprocess_exec(*command, env=environ)
        try:
            await until_it_hangs(fake)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                assert await process.wait() == 0
        finally:
            await _reap(process)


async def until_it_hangs(fake: FakeNvml) -> None:
    async with asyncio.timeout(10):
        while not fake.hangs:
            await asyncio.sleep(0.01)


async def test_nothing_outlives_a_daemon_that_is_killed(start: Start) -> None:
    daemon = await start(ECHO + MODEL.format("echo/a") + MODEL.format("echo/b"))
    await daemon.ready()
    hosts = daemon.hosts()
    assert len(hosts) == 2
    assert await daemon.end(signal.SIGKILL) == -signal.SIGKILL
    await until_gone(hosts)
    again = await start(ECHO)  # in the same run_dir
    assert [p.name for p in (again.folder / "run").iterdir()] == ["lock"]


async def test_ctrl_c_ends_it_as_well(start: Start) -> None:
    daemon = await start(ECHO)
    assert await daemon.end(signal.SIGINT) == 0


def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "neuron", *args],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **environ},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "line 1: unknown key `prot`. Did you mean `port`?"),
        ("[[harnesses]]\nname = 'llama'", "there is no harness 'llama'"),
        ("listen = '203.0.113.1'", "203.0.113.1:13131 is not one of this machine"),
        ("listen = '127.0.0.1'\nport = 0\nrun_dir = '/proc/x'", "run_dir /proc/x cannot be made"),
    ],
)
def test_a_mistake_ends_it_with_exit_code_2(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "neuron.toml"
    path.write_text(text)
    done = run("serve", "--config", str(path))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    path = tmp_path / "neuron.toml"
    path.write_text(ECHO)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--config", str(path), "--listen", "127.0.0.1", "--port", str(port))
    assert done.returncode == 2
    assert f"127.0.0.1:{port} is in use" in done.stderr


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    done = run("serve", "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert "none.toml does not exist" in done.stderr


def test_options_override_environment_and_file(tmp_path: Path) -> None:
    path = tmp_path / "neuron.toml"
    path.write_text("port = 1\nlisten = '127.0.0.1'\n")
    settings = read_settings(path, None, 3)
    assert (settings.listen, settings.port) == ("127.0.0.1", 3)
    assert read_settings(path, "::1", None).listen == "::1"


def test_the_version_is_the_package_s() -> None:
    done = CliRunner().invoke(main, ["--version"])
    assert re.fullmatch(r"neuron, version \d+\.\d+\.\d+\n", done.output)
