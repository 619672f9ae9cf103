# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon's start: what it reads, what it binds, what it says."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from cortex_core.catalogue import Catalogue, Model
from cortex_core.errors import OperatorError
from cortex_core.http.client import Client
from cortex_gateway import serve
from cortex_gateway.config import Config, GatewaySettings
from cortex_gateway.status import CatalogueStatus

ROOT = Path(__file__).parents[3]
FREE = "127.0.0.1:0"


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (Config(), "models.toml"),
        (Config(models_config="sub/mine.toml"), "sub/mine.toml"),
        (Config(models_config="/elsewhere/mine.toml"), "/elsewhere/mine.toml"),
    ],
)
def test_the_catalogue_is_looked_for_beside_the_config(
    tmp_path: Path, config: Config, where: str
) -> None:
    assert serve.catalogue_path(config, tmp_path / "cortex.toml") == (tmp_path / where).resolve()


def test_without_a_config_the_catalogue_s_path_is_told_in_full_too() -> None:
    assert serve.catalogue_path(Config(), None).is_absolute()


def test_a_catalogue_that_is_not_there_declares_nothing(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    assert serve.read_catalogue(path) == (
        Catalogue(),
        CatalogueStatus(path=str(path), found=False, models=0, aliases=0),
    )
    path.write_text("")
    assert serve.read_catalogue(path)[1].found


def test_the_catalogue_is_read(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text("[[models]]\nid = 'm'\n[aliases]\na = 'm'\n")
    catalogue, found = serve.read_catalogue(path)
    assert catalogue.models == [Model(id="m")]
    assert (found.models, found.aliases) == (1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[models]]\nid = 'm'\nvram = 3\n", "line 3: unknown key `models[0].vram`. Did you mean `vram_mb`?"),
        ("[[models]]\nid = 'm'\n[[models]]\nid = 'm'\n", "two entries with the id 'm'"),
        ("[[models]]\nid = 'm'\n[aliases]\nm = 'n'\n", "'m', which is the id of a model too"),
        ("[aliases]\na = 'b'\nb = 'm'\n", "the alias 'a' names 'b', which is an alias itself"),
        ("[[models]]\nid = 'm'\nmin_devices = 'two'\n", "line 3: `models[0].min_devices`"),
        ("[[models]\n", "is not valid TOML"),
    ],
)  # fmt: skip
def test_an_invalid_catalogue_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(OperatorError) as caught:
        serve.read_catalogue(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message


def test_variables_of_others_of_ours_are_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CORTEX_ENDPOINT", "CORTEX_KEY", "CORTEX_GIT_SHA", "CORTEX_PORT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("CORTEX_POLL__MISSES", "7")
    (tmp_path / "cortex.toml").write_text("")
    with structlog.testing.capture_logs() as logged:
        config, _, _ = serve.read(tmp_path / "cortex.toml")
    assert [entry["variable"] for entry in logged] == ["CORTEX_PORT"]
    assert config.poll.misses == 7


def test_the_example_catalogue_is_read() -> None:
    catalogue, _ = serve.read_catalogue(ROOT / "models.example.toml")
    assert [model.id for model in catalogue.models] == ["helexa/demo"]


@pytest.mark.parametrize("taken_by", ["listen", "metrics_listen"])
async def test_a_port_in_use_is_said_before_anything_is_served(taken_by: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        free = GatewaySettings(listen=FREE, metrics_listen=FREE)
        settings = msgspec.structs.replace(free, **{taken_by: address})
        found = CatalogueStatus(path="/x", found=False, models=0, aliases=0)
        with pytest.raises(OperatorError, match=f"{address} is in use"):
            await serve.serve(
                Config(gateway=settings), Catalogue(), found, lambda: serve.read(None)
            )


async def start(folder: Path, text: str) -> tuple[asyncio.subprocess.Process, str, str]:
    """A gateway as a process; its API's and its metrics' endpoint."""
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            ports.append(sock.getsockname()[1])
    listen = f"listen = '127.0.0.1:{ports[0]}'\nmetrics_listen = '127.0.0.1:{ports[1]}'\n"
    (folder / "cortex.toml").write_text(f"[gateway]\n{listen}{text}")
    code = f"from pathlib import Path; from cortex_gateway.serve import main; main(Path({str(folder / 'cortex.toml')!r}))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE, env={**os.environ}
    )
    return process, *(f"http://127.0.0.1:{port}" for port in ports)  # type: ignore[return-value]  # there are two


async def until_up(client: Client) -> Any:
    async with asyncio.timeout(10):
        while True:
            try:
                return await client.ask("GET", "/health", object)
            except Exception:  # noqa: BLE001 - not up yet, whatever it says
                await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_gateway_without_catalogue_and_neurons_starts_says_so_and_ends_well(
    tmp_path: Path,
) -> None:
    process, endpoint, metrics_endpoint = await start(tmp_path, "")
    client, metrics = Client(endpoint), Client(metrics_endpoint)
    try:
        health = await until_up(client)
        assert health["nodes"] == {"healthy": 0, "total": 0}
        assert health["catalogue"]["path"] == str(tmp_path / "models.toml")
        async with metrics.open("GET", "/metrics") as reply:
            assert reply.status == 200
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await client.close()
        await metrics.close()
    assert process.returncode == 0
    said = err.decode()
    assert "Traceback" not in said
    for phrase in ("no catalogue", "no neurons configured", "serving anyone", "gateway is up"):
        assert phrase in said
