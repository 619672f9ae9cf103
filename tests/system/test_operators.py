# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator's day on real daemons: secrets, the operators' key, a reload under a stream, and why a request went where it went."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from signal import SIGHUP
from typing import Any

import pytest

from cortex_core.http.client import Client, RefusedError
from cortex_core.http.headers import Headers

pytestmark = pytest.mark.slow

SECRET, KEY = "hush-secret", "hush-key"
SLOW = "echo/slow?tokens=40&token_s=0.05"
NEURON = f"""\
[[harnesses]]
name = "echo"
[[default_models]]
model_id = "{SLOW}"
harness = "echo"
"""
FIELDS: Headers = [(b"content-type", b"application/json"), (b"x-request-id", b"r1")]
BODY = json.dumps({"model": SLOW, "stream": True, "messages": [{"role": "user", "content": "hi"}]})


async def cortex(gateway: Any, *words: str, key: str = KEY) -> tuple[int, str]:
    """A command's exit code, and all that it says."""
    environ = {**os.environ, "CORTEX_ENDPOINT": gateway.endpoint, "CORTEX_KEY": key}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "cortex_cli", *words],
        capture_output=True,
        text=True,
        timeout=30,
        env={**environ, "COLUMNS": "200"},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


async def until_node(operators: Client, **wanted: object) -> None:
    """Wait until the only node is so."""
    node: dict[str, Any] = {}
    try:
        async with asyncio.timeout(20):
            while {name: node.get(name) for name in wanted} != wanted:
                await asyncio.sleep(0.05)
                told = await operators.ask("GET", "/fleet", dict[str, Any])
                node = told["nodes"][0] if len(told["nodes"]) == 1 else {}
    except TimeoutError:
        raise AssertionError(f"the node is still {node}") from None


async def test_secrets_a_reload_under_a_stream_and_an_explanation(fleet: Any) -> None:
    neuron = await fleet.neuron(config=NEURON, NEURON_SECRET=SECRET)
    gateway = await fleet.gateway(neuron, CORTEX_FLEET__KEY=KEY)
    assert list(await neuron.get("/health")) == ["uptime_secs"]
    with pytest.raises(RefusedError, match="401"):
        await neuron.get("/models")
    operators = Client(gateway.endpoint, headers=[(b"x-api-key", KEY.encode())])
    await until_node(operators, up=False, problem="it wants a secret, and none is configured")

    config: Path = fleet.folder / "gateway.toml"
    config.write_text(f'{config.read_text()}secret = "{SECRET}"\n')
    gateway.process.send_signal(SIGHUP)
    await until_node(operators, up=True, problem=None)
    authorised = Client(neuron.endpoint, headers=[(b"x-api-key", SECRET.encode())])
    async with asyncio.timeout(20):
        while (await authorised.ask("GET", "/models", list[Any]))[0]["status"] != "loaded":
            await asyncio.sleep(0.05)

    async with gateway.client.open(
        "POST", "/v1/chat/completions", headers=FIELDS, body=BODY.encode()
    ) as reply:
        raw = await reply.read()
        config.write_text(config.read_text().replace('name = "a"', 'name = "renamed"'))
        gateway.process.send_signal(SIGHUP)
        while part := await reply.read():
            raw += part
    assert reply.status == 200
    assert raw.count(b'"content"') >= 40
    assert raw.endswith(b"data: [DONE]\n\n")
    await until_node(operators, name="renamed", up=True)

    assert f"r1: {SLOW}, answered on a with 200" in (await cortex(gateway, "explain", "r1"))[1]
    code, said = await cortex(gateway, "status")
    assert (code, "renamed" in said) == (0, True), said
    code, said = await cortex(gateway, "unload", SLOW, key="guess")
    assert (code, "does not know this key" in said) == (1, True), said
    code, said = await cortex(gateway, "unload", SLOW)
    assert (code, "unloaded" in said) == (0, True), said
    for client in (operators, authorised):
        await client.close()
    assert "hush" not in neuron.log + gateway.log
