# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's own package on Responses, before an upstream that speaks chat alone: its accumulator must take every event."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from cortex_core.http.client import Client
from cortex_core.testing import read_body, serving

pytestmark = pytest.mark.slow

PLAIN = "echo/plain"
THINKS = "echo/thinks?reasoning=1"
CALLS = "echo/calls?tools=1"
BREAKS = "echo/breaks?fail=stream&tokens=50"
CATALOGUE = "".join(
    f'[[models]]\nid = "{model}"\nharness = "echo"\n' for model in (PLAIN, THINKS, CALLS, BREAKS)
)
TOOLS: Any = [
    {
        "type": "function",
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": False,
    },
    {"type": "web_search"},
]


class WithoutResponses:
    """Passes everything on to a neuron but what goes to `/v1/responses`, which it does not know."""

    def __init__(self, endpoint: str) -> None:
        self._client = Client(endpoint)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = await read_body(receive)
        if scope["path"] == "/v1/responses":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b'{"detail":"Not Found"}'})
            return
        fields = [field for field in scope["headers"] if field[0] != b"content-length"]
        async with self._client.open(
            scope["method"], scope["path"], headers=fields, body=body or None
        ) as reply:
            kept = [f for f in reply.headers if f[0].lower() in (b"content-type", b"retry-after")]
            await send({"type": "http.response.start", "status": reply.status, "headers": kept})
            while part := await reply.read():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def close(self) -> None:
        await self._client.close()


@pytest.fixture
async def client(fleet: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    upstream = WithoutResponses((await fleet.neuron()).endpoint)
    async with serving(upstream) as endpoint:
        gateway = await fleet.gateway(endpoint, models=CATALOGUE)
        async with openai.AsyncOpenAI(
            base_url=f"{gateway.endpoint}/v1", api_key="none", max_retries=0
        ) as made:
            yield made
    await upstream.close()


async def gather(client: openai.AsyncOpenAI, **asked: Any) -> tuple[Any, list[str]]:
    """The response as the package puts it together, and the types of its events."""
    async with client.responses.stream(**asked) as stream:
        kinds = [str(event.type) async for event in stream]
        return await stream.get_final_response(), kinds


@pytest.mark.parametrize("model", [PLAIN, THINKS])
async def test_a_response_is_the_same_whole_and_streamed(
    client: openai.AsyncOpenAI, model: str
) -> None:
    asked: Any = {"model": model, "input": "one two three", "instructions": "Be brief."}
    whole = await client.responses.create(**asked)
    gathered, kinds = await gather(client, **asked)
    assert (whole.output_text, whole.status) == ("one two three", "completed")
    assert whole.usage is not None
    assert gathered.output_text == whole.output_text
    assert [item.type for item in gathered.output] == [item.type for item in whole.output]
    assert gathered.usage.output_tokens == whole.usage.output_tokens
    assert (whole.instructions, gathered.instructions) == ("Be brief.", "Be brief.")
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 3
    assert ("response.reasoning_text.delta" in kinds) is (model == THINKS)


async def test_a_tool_is_called_and_the_whole_is_replayed(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": CALLS, "input": "Paris", "tools": TOOLS}
    raw = await client.responses.with_raw_response.create(**asked)
    assert raw.headers["x-cortex-dropped"] == "tools.web_search"
    gathered, kinds = await gather(client, **asked)
    (call,) = [item for item in gathered.output if item.type == "function_call"]
    assert call.name == "get_weather"
    assert kinds.count("response.function_call_arguments.done") == 1
    history: Any = [
        {"role": "user", "content": "Paris"},
        *[item.model_dump(exclude={"parsed_arguments"}) for item in gathered.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "18, sunny"},
    ]
    final = await client.responses.create(model=PLAIN, input=history, tools=TOOLS)
    assert final.status == "completed"


async def test_an_engine_that_dies_in_the_middle_is_told(client: openai.AsyncOpenAI) -> None:
    kinds, said = [], []
    stream: Any = await client.responses.create(model=BREAKS, input="x", stream=True)
    async for event in stream:
        kinds.append(event.type)
        if event.type in ("error", "response.failed"):
            said.append(event)
    assert kinds[-2:] == ["error", "response.failed"]
    assert said[0].code == said[1].response.error.code == "engine_died"


async def test_what_is_refused_is_the_package_s_own_exception(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as chained:
        await client.responses.create(model=PLAIN, input="x", previous_response_id="resp_1")
    assert chained.value.code == "chained_conversation_not_supported"
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(model="nobody/knows", input="x")
    cut = await client.responses.create(model=PLAIN, input="one two three", max_output_tokens=1)
    assert (cut.status, cut.output_text) == ("incomplete", "one")
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
