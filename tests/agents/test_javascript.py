# SPDX-License-Identifier: GPL-3.0-or-later
"""The vendors' JavaScript packages and the AI SDK, headless, against gateway, neuron and echo engines."""

import asyncio
import json
from typing import Any

import pytest

from cortex_core.http.client import Client
from cortex_core.testing import serving

pytestmark = pytest.mark.slow

MODELS = (
    "echo/plain",
    "echo/thinks?reasoning=1",
    "echo/calls?tools=1",
    "echo/slow?tokens=1000&token_s=0.05",
    "echo/busy?fail=status:503",
    "echo/cold?load_s=2",
    "echo/cold-openai?load_s=2",
    "echo/cold-anthropic?load_s=2",
    "echo/breaks?fail=stream&tokens=50",
    "echo/breaks-openai?fail=stream&tokens=50",
    "echo/breaks-anthropic?fail=stream&tokens=50",
)
# A cold load is to be held with signs of life, in a test's time.
CONFIG = "[loading]\ncommit_after_s = 0.3\nkeepalive_s = 0.3\n"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CATALOGUE = "".join(f'[[models]]\nid = "{model}"\nharness = "echo"\n' for model in MODELS)
TEXT = "one two three"
# What the AI SDK's providers make of a tool that throws.
FAILED = {"openai": "no network", "anthropic": "Error: no network"}


class Passing:
    """Passes everything on to a neuron, and records what is asked there."""

    def __init__(self, endpoint: str) -> None:
        self.asked: list[Any] = []
        self._client = Client(endpoint)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"].startswith("/v1/"):
            self.asked.append(json.loads(body))
        passing = asyncio.ensure_future(self._pass(scope, body, send))
        leaving = asyncio.ensure_future(receive())
        await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        both = {passing, leaving}
        for task in both:
            task.cancel()
        await asyncio.wait(both)
        if not passing.cancelled():
            passing.result()

    async def _pass(self, scope: Any, body: bytes, send: Any) -> None:
        fields = [field for field in scope["headers"] if field[0] != b"content-length"]
        opening = self._client.open(
            scope["method"], scope["path"], headers=fields, body=body or None
        )
        async with opening as reply:
            kept = [f for f in reply.headers if f[0].lower() in (b"content-type", b"retry-after")]
            await send({"type": "http.response.start", "status": reply.status, "headers": kept})
            while part := await reply.read():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def close(self) -> None:
        await self._client.close()

    @property
    def images(self) -> int:
        """Requests with the image that the scripts send."""
        return sum("data:image/png;base64,iVBORw0KGgo" in json.dumps(asked) for asked in self.asked)

    @property
    def schemas(self) -> list[Any]:
        """The forms of answers that were asked for."""
        formats = [asked["response_format"] for asked in self.asked if "response_format" in asked]
        return [found.get("json_schema", {}).get("schema") for found in formats]


async def run(fleet: Any, agents: Any, script: str) -> tuple[Any, Passing]:
    """What the script told. The stream that it left in the middle has been ended on the neuron as well."""
    neuron = await fleet.neuron()
    passing = Passing(neuron.endpoint)
    async with serving(passing) as endpoint:
        gateway = await fleet.gateway(endpoint, models=CATALOGUE, config=CONFIG)
        ran = await agents.script(script, gateway.endpoint)
        assert ran.code == 0, ran.err
        await neuron.until("/health", lambda h: not any(m["running"] for m in h["models"]))
    await passing.close()
    return json.loads(ran.out), passing


async def test_openai(fleet: Any, agents: Any) -> None:
    told, passing = await run(fleet, agents, "openai.mjs")
    assert told == {
        "plain": TEXT,
        "image": TEXT,
        "seenInResponse": TEXT,
        "structured": "Paris",
        "thought": "I will repeat what I was told.",
        "failed": "Error: no network",
        "cold": TEXT,
        "broken": ["APIError", "engine_died", True],
        "streamed": TEXT,
        "usage": 3,
        "tool": "18, sunny",
        "response": TEXT,
        "pieces": 3,
        "unknown": ["NotFoundError", "model_not_found"],
        "busy": ["InternalServerError", 503],
    }
    assert (passing.images, passing.schemas) == (2, [SCHEMA])


async def test_anthropic(fleet: Any, agents: Any) -> None:
    told, passing = await run(fleet, agents, "anthropic.mjs")
    assert sorted(told.pop("models")) == sorted(MODELS)
    assert told == {
        "plain": TEXT,
        "streamed": ["thinking", "text"],
        "usage": 10,
        "call": ["tool_use", "get_weather"],
        "tool": "18, sunny",
        "runner": "18, sunny",
        "count": 3,
        "pieces": 3,
        "unknown": ["NotFoundError", "not_found_error"],
        "busy": [529, "overloaded_error"],
        "image": TEXT,
        "structured": "Paris",
        "failed": "Error: no network",
        "coldCount": 3,
        "cold": TEXT,
        "broken": ["engine_died", "api_error", True],
    }
    assert (passing.images, passing.schemas) == (1, [SCHEMA])


async def test_the_ai_sdk_in_both_dialects(fleet: Any, agents: Any) -> None:
    told, passing = await run(fleet, agents, "vercel.mjs")
    assert set(told) == {"openai", "anthropic"}
    for name, found in told.items():
        assert "nobody/knows" in found.pop("says"), name
        assert found == {
            "plain": TEXT,
            "streamed": TEXT,
            "usage": 10,
            "thought": True,
            "tool": "18, sunny",
            "steps": 2,
            "aborted": True,
            "unknown": ["AI_APICallError", 404],
            "busy": True,
            "image": TEXT,
            "structured": "Paris",
            "failed": FAILED[name],
            "cold": TEXT,
            "broken": [["error"], True],
        }, name
    assert passing.images == 2
    # For any JSON by the one; the other has the answer forced into a tool that it makes up.
    assert passing.schemas == [None]
    tools = [asked["tools"][0]["function"] for asked in passing.asked if asked.get("tools")]
    assert [tool["parameters"] for tool in tools if tool["name"] == "json"] == [SCHEMA]
