# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may ask the daemon, and what everyone may know."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import pytest

from cortex_core.http.client import Client, RefusedError
from cortex_core.http.headers import Headers
from cortex_core.node import Health
from neuron.harnesses.environment import environ
from neuron.secret import is_loopback
from neuron.testing import Served, make_config, serve

SECRET = "s3cret-of-the-fleet"
SHOWN: Headers = [(b"authorization", f"Bearer {SECRET}".encode())]
ROUTES = [
    ("GET", "/discovery"),
    ("GET", "/version"),
    ("GET", "/models"),
    ("GET", "/models/echo/m/endpoint"),
    ("GET", "/weights"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/nowhere"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("POST", "/models/plan"),
    ("POST", "/weights/pull"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
]


@pytest.fixture
async def guarded() -> AsyncIterator[Served]:
    async with serve(make_config(secret=SECRET)) as made:
        yield made


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "fields", [[], [(b"authorization", b"Bearer wrong")], [(b"x-api-key", SECRET[:-1].encode())]]
)
async def test_without_the_secret_every_route_is_refused(
    guarded: Served, method: str, path: str, fields: Headers
) -> None:
    client = Client(guarded.endpoint, headers=fields)
    try:
        with pytest.raises(RefusedError) as caught:
            await client.ask(method, path, object, {} if method == "POST" else None)
    finally:
        await client.close()
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize("fields", [SHOWN, [(b"x-api-key", SECRET.encode())]])
async def test_with_the_secret_everything_is_answered(guarded: Served, fields: Headers) -> None:
    client = Client(guarded.endpoint, headers=fields)
    try:
        assert await client.ask("GET", "/models", object) == []
        with pytest.raises(RefusedError, match="404"):
            await client.ask("POST", "/v1/chat/completions", object, {"model": "m"})
        health = await client.ask("GET", "/health", Health)
    finally:
        await client.close()
    assert health.instance


async def test_health_says_no_more_than_that_it_is_alive_to_who_shows_nothing(
    guarded: Served,
) -> None:
    assert list(await guarded.get("/health")) == ["uptime_secs"]


async def test_the_same_daemon_says_the_same_of_who_it_is_everywhere(served: Served) -> None:
    told = {(await served.get(path))["instance"] for path in ("/health", "/health", "/discovery")}
    assert len(told) == 1
    async with serve(make_config()) as other:
        assert (await other.get("/health"))["instance"] not in told


def test_engines_are_not_told_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_SECRET", SECRET)
    assert "NEURON_SECRET" not in environ({})


@pytest.mark.parametrize(
    ("host", "is_one"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.5", False), ("gpu-box", False)],
)  # fmt: skip
def test_what_only_this_machine_reaches(host: str, is_one: bool) -> None:
    assert is_loopback(host) is is_one


async def start_and_read(listen: str, secret: str | None) -> str:
    """What a daemon says until it serves, and then until its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neuron", "serve", "--listen", listen, "--port", "0"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **({"NEURON_SECRET": secret} if secret else {})},
    )
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(20):
        while b"neuron serves" not in said:
            said += await process.stderr.readline()
        process.terminate()
        said += await process.stderr.read()
        await process.wait()
    return said.decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listen", "secret", "warns"),
    [("0.0.0.0", None, True), ("0.0.0.0", SECRET, False), ("127.0.0.1", None, False)],
)
async def test_an_open_daemon_says_so_and_the_secret_is_in_no_log(
    listen: str, secret: str | None, warns: bool
) -> None:
    said = await start_and_read(listen, secret)
    assert ("no secret configured" in said) is warns
    assert SECRET not in said
