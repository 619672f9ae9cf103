# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that is no neuron as a node: over TLS, under a base path, in every dialect, and beside real neurons."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MODEL = "echo/vendor/large"
ECHO = f'[[harnesses]]\nname = "echo"\n[[default_models]]\nmodel_id = "{MODEL}"\nharness = "echo"\n'
NODE = '[[neurons]]\nname = "cloud"\nendpoint = "{}"\nkind = "openai"\n'
SAID = [{"role": "user", "content": "one two"}]


def make_certificate(folder: Path) -> Path:
    """Of localhost, with its key, and signed by itself."""
    path = folder / "tls.pem"
    words = (
        f"req -x509 -newkey rsa:2048 -nodes -keyout {path}.key -out {path} -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    )
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True, timeout=30)
    return path


@asynccontextmanager
async def open_tls(certificate: Path, port: int) -> AsyncIterator[str]:
    """What listens on a port, over TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, f"{certificate}.key")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_models_of_a_server_behind_tls_are_served_in_every_dialect(fleet: Any) -> None:
    outside = await fleet.neuron("outside", ECHO)
    await outside.until("/health", lambda health: health["activation"]["state"] == "ready")
    certificate = make_certificate(fleet.folder)
    async with open_tls(certificate, int(outside.endpoint.rsplit(":", 1)[1])) as endpoint:
        gateway = await fleet.gateway(
            config=NODE.format(f"{endpoint}/v1"), SSL_CERT_FILE=str(certificate)
        )
        listed = (await gateway.get("/v1/models"))["data"]
        assert [(entry["id"], entry["loaded"]) for entry in listed] == [(MODEL, True)]
        answer = await gateway.chat(MODEL, "one two")
        assert answer["choices"][0]["message"]["content"] == "one two"
        for stream in (False, True):
            body = {"model": MODEL, "max_tokens": 50, "messages": SAID, "stream": stream}
            status, headers, raw = await gateway.post("/v1/messages", body)
            assert (status, headers[b"x-cortex-node"]) == (200, b"cloud")
            assert b"two" in raw
            body = {"model": MODEL, "input": "one two", "stream": stream}
            status, _, raw = await gateway.post("/v1/responses", body)
            assert status == 200
            assert b"two" in raw
        status, _, raw = await gateway.post("/fleet/models/unload", {"model_id": MODEL})
        assert (status, json.loads(raw)["error"]["code"]) == (400, "invalid_request_body")


async def test_another_gateway_is_a_node_and_the_fallback_of_a_model_that_fails(
    fleet: Any,
) -> None:
    """Of two gateways the second is a cloud to the first, which turns to it when its own node is gone."""
    far = await fleet.neuron("far", ECHO)
    await far.until("/health", lambda health: health["activation"]["state"] == "ready")
    cloud = await fleet.gateway(far)
    near = await fleet.neuron("near")
    catalogue = (
        '[[models]]\nid = "echo/own"\nharness = "echo"\n'
        f'[aliases]\ncloud = "{MODEL}"\n[fallbacks]\n"echo/own" = ["cloud"]\n'
    )
    # the file of the first one is read already
    gateway = await fleet.gateway(
        near, models=catalogue, config=NODE.format(f"{cloud.endpoint}/v1/")
    )
    assert (await gateway.chat("echo/own"))["model"] == "echo/own"
    near.process.kill()
    answers = await asyncio.gather(*(gateway.chat("echo/own") for _ in range(8)))
    assert {answer["model"] for answer in answers} == {MODEL}
    assert sum((await gateway.counts("cortex_fallbacks_total")).values()) == 8


async def test_idle_engines_are_reloaded_after_so_many_cycles(fleet: Any) -> None:
    neuron = await fleet.neuron()
    entries = "".join(
        f'[[models]]\nid = "echo/{name}"\nharness = "echo"\n' for name in ("kept", "moved")
    )
    gateway = await fleet.gateway(
        neuron, models=entries, config="[eviction]\ndefrag_after_cycles = 3\n"
    )
    await gateway.chat("echo/kept")
    for _ in range(3):
        await gateway.chat("echo/moved")
        await gateway.post("/fleet/models/unload", {"model_id": "echo/moved"})
    await gateway.until("/health", lambda _: "engine reloaded" in gateway.log)
    assert await gateway.counts("cortex_defrags_total") == {"echo/kept": 1.0}
    assert (await neuron.get("/health"))["cycles"] == 0
    answer = await gateway.chat("echo/kept", "still there")
    assert answer["choices"][0]["message"]["content"] == "still there"
