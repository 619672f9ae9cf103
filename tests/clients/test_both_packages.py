# SPDX-License-Identifier: GPL-3.0-or-later
"""What both vendors' packages do on echo engines: images, forms, failing tools, engines that die, cold loads."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from passing import Passing, passing_to

pytestmark = pytest.mark.slow

PLAIN = "echo/plain"
CALLS = "echo/calls?tools=1"
SLOW = "echo/slow?tokens=1000&token_s=0.05"
BREAKS = "echo/breaks?fail=stream&tokens=50"
COLD = "echo/cold?load_s=2"
MODELS = (PLAIN, CALLS, SLOW, BREAKS, COLD)
CATALOGUE = "".join(f'[[models]]\nid = "{model}"\nharness = "echo"\n' for model in MODELS)
# A cold load is to be held with signs of life, in a test's time.
CONFIG = "[loading]\ncommit_after_s = 0.3\nkeepalive_s = 0.3\n"
TEXT = "one two three"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
ASKED: Any = [{"role": "user", "content": TEXT}]


@pytest.fixture
async def served(fleet: Any) -> AsyncIterator[tuple[str, Passing]]:
    """Where the gateway is asked, and what stands before its neuron."""
    neuron = await fleet.neuron()
    async with passing_to(neuron) as (passing, upstream):
        gateway = await fleet.gateway(upstream, models=CATALOGUE, config=CONFIG)
        yield gateway.endpoint, passing
        # Whatever was left in the middle has ended on the neuron as well.
        await neuron.until("/health", lambda h: not any(m["running"] for m in h["models"]))


async def test_openai(served: tuple[str, Passing]) -> None:
    endpoint, passing = served
    async with openai.AsyncOpenAI(
        base_url=f"{endpoint}/v1", api_key="none", max_retries=0
    ) as client:
        chat: Any = client.chat.completions
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        seen = [{"role": "user", "content": [{"type": "text", "text": TEXT}, picture]}]
        assert (await chat.create(model=PLAIN, messages=seen)).choices[0].message.content == TEXT
        assert passing.asked[-1]["messages"] == seen

        form = {
            "type": "json_schema",
            "json_schema": {"name": "place", "strict": True, "schema": SCHEMA},
        }
        wanted = [{"role": "user", "content": '{"city": "Paris"}'}]
        formed = await chat.create(model=PLAIN, messages=wanted, response_format=form)
        assert json.loads(formed.choices[0].message.content) == {"city": "Paris"}
        assert passing.asked[-1]["response_format"] == form

        function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        call = {"id": "call_1", "type": "function", "function": function}
        failed = [
            *ASKED,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Error: no network"},
        ]
        told = await chat.create(model=CALLS, messages=failed)
        assert told.choices[0].message.content == "Error: no network"

        cold = await chat.create(model=COLD, messages=ASKED, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in cold]) == TEXT

        async for _ in await chat.create(model=SLOW, messages=ASKED, stream=True):
            break
        with pytest.raises(openai.APIError) as broken:
            async for _ in await chat.create(model=BREAKS, messages=ASKED, stream=True):
                pass
        assert broken.value.code == "engine_died"


async def test_anthropic_s_runner_goes_on_without_a_thread(served: tuple[str, Passing]) -> None:
    """What it would have a server keep is refused, and all that it sends afterwards has the whole history."""
    endpoint, _ = served
    sent: list[Any] = []

    async def note(request: Any) -> None:
        sent.append(json.loads(request.content))

    @anthropic.beta_async_tool
    async def get_weather(city: str) -> str:
        """Get the weather."""
        return f"sunny in {city}"

    asked: Any = {"model": CALLS, "max_tokens": 99, "messages": ASKED, "tools": [get_weather]}
    http = anthropic.DefaultAsyncHttpxClient(event_hooks={"request": [note]})
    async with anthropic.AsyncAnthropic(
        base_url=endpoint, api_key="none", max_retries=0, http_client=http
    ) as client:
        last = await client.beta.messages.tool_runner(**asked).until_done()
    assert last.content[0].text == f"sunny in {TEXT}"
    threads = [body.pop("thread", None) for body in sent]
    assert threads[-2:] == [None, None]
    if len(sent) == 3:
        assert (threads[0], sent[0]) == ({"type": "create"}, sent[1])
    first, second = sent[-2:]
    assert first["messages"] == ASKED
    assert second["tools"] == first["tools"]
    begun, call, result = second["messages"]
    assert begun == ASKED[0]
    assert [call["role"], result["role"]] == ["assistant", "user"]
    assert result["content"][0]["tool_use_id"] == call["content"][0]["id"]
    # The majors before these know no threads.
    assert len(sent) == (3 if int(anthropic.__version__.partition(".")[0]) else 2)


async def test_anthropic(served: tuple[str, Passing]) -> None:
    endpoint, passing = served
    async with anthropic.AsyncAnthropic(base_url=endpoint, api_key="none", max_retries=0) as client:
        create: Any = client.messages.create
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        parts = [{"type": "image", "source": source}, {"type": "text", "text": TEXT}]
        seen = [{"role": "user", "content": parts}]
        assert (await create(model=PLAIN, max_tokens=9, messages=seen)).content[0].text == TEXT
        assert (passing.images, passing.schemas) == (1, [])

        wanted = [{"role": "user", "content": '{"city": "Paris"}'}]
        form = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
        formed = await create(model=PLAIN, max_tokens=9, messages=wanted, extra_body=form)
        assert json.loads(formed.content[0].text) == {"city": "Paris"}
        assert (passing.images, passing.schemas) == (1, [SCHEMA])

        use = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Paris"}}  # fmt: skip
        result = {"type": "tool_result", "tool_use_id": "call_1", "content": "no network"}
        failed = [
            *ASKED,
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [{**result, "is_error": True}]},
        ]
        told = await create(model=CALLS, max_tokens=9, messages=failed)
        assert told.content[0].text == "Error: no network"

        counted = await client.messages.count_tokens(model=COLD, messages=ASKED)
        assert counted.input_tokens == 3
        async with client.messages.stream(model=COLD, max_tokens=9, messages=ASKED) as cold:
            assert await cold.get_final_text() == TEXT

        async with client.messages.stream(model=SLOW, max_tokens=999, messages=ASKED) as slow:
            async for _ in slow:
                break
        breaks = await create(model=BREAKS, max_tokens=99, messages=ASKED, stream=True)
        with pytest.raises(anthropic.APIStatusError) as broken:
            async for _ in breaks:
                pass
        body: Any = broken.value.body
        assert body["error"]["code"] == "engine_died"
