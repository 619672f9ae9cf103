# SPDX-License-Identifier: GPL-3.0-or-later
"""The vendors' packages while a model comes up, a minute being a second: what four minutes are, `docs/measurements.md` tells."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

pytestmark = pytest.mark.slow

# Their defaults and ours, a sixtieth of each: they give up after ten minutes, and we hold as long.
LOAD_S = 4.0
PATIENCE_S = 10.0
LOADING = "[loading]\ncommit_after_s = 0.05\nkeepalive_s = 0.083\nload_wait_s = {wait_s}\n"
TEXT: Any = [{"role": "user", "content": "one two three"}]

Ask = Callable[[Any, str], Awaitable[str]]


async def chat(client: openai.AsyncOpenAI, model: str) -> str:
    answer = await client.chat.completions.create(model=model, messages=TEXT)
    return answer.choices[0].message.content or ""


async def chat_streamed(client: openai.AsyncOpenAI, model: str) -> str:
    stream = await client.chat.completions.create(model=model, messages=TEXT, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def respond(client: openai.AsyncOpenAI, model: str) -> str:
    return (await client.responses.create(model=model, input="one two three")).output_text


async def respond_streamed(client: openai.AsyncOpenAI, model: str) -> str:
    stream = await client.responses.create(model=model, input="one two three", stream=True)
    return "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])


async def message(client: anthropic.AsyncAnthropic, model: str) -> str:
    answer: Any = await client.messages.create(model=model, max_tokens=99, messages=TEXT)
    return str(answer.content[0].text)


async def message_streamed(client: anthropic.AsyncAnthropic, model: str) -> str:
    async with client.messages.stream(model=model, max_tokens=99, messages=TEXT) as stream:
        return "".join([text async for text in stream.text_stream])


WHOLE = {openai: [chat, respond], anthropic: [message]}
STREAMED = {openai: [chat_streamed, respond_streamed], anthropic: [message_streamed]}


@asynccontextmanager
async def clients(gateway: Any, timeout_s: float) -> AsyncIterator[dict[Any, Any]]:
    """Both packages as they are by default, but for how long they wait for the next byte."""
    at, key = gateway.endpoint, "none"
    async with (
        openai.AsyncOpenAI(base_url=f"{at}/v1", api_key=key, timeout=timeout_s) as one,
        anthropic.AsyncAnthropic(base_url=at, api_key=key, timeout=timeout_s) as other,
    ):
        yield {openai: one, anthropic: other}


async def ask_all(asks: Mapping[Any, Any], by: dict[Any, Any], model: str) -> list[str]:
    asked = [ask(by[vendor], model) for vendor, each in asks.items() for ask in each]
    return list(await asyncio.gather(*asked))


async def open_gateway(fleet: Any, model: str, wait_s: float) -> Any:
    catalogue = f'[[models]]\nid = "{model}"\nharness = "echo"\n'
    config = LOADING.format(wait_s=wait_s)
    return await fleet.gateway(await fleet.neuron(), models=catalogue, config=config)


@pytest.mark.parametrize(
    ("asks", "timeout_s"),
    [(WHOLE, PATIENCE_S), (STREAMED, 1.0)],  # a stream has a sign of life long before
    ids=["whole", "streamed"],
)
async def test_a_long_load_is_waited_for(fleet: Any, asks: Any, timeout_s: float) -> None:
    model = f"echo/cold?load_s={LOAD_S}"
    gateway = await open_gateway(fleet, model, wait_s=PATIENCE_S)
    async with clients(gateway, timeout_s) as by:
        texts = await ask_all(asks, by, model)
    assert texts == ["one two three"] * 3
    assert await gateway.counts("cortex_cold_starts_total") == {model: 1.0}
    # nobody had to ask twice
    assert await gateway.counts("cortex_requests_total") == {model: 3.0}
    assert await gateway.counts("cortex_rejections_total", "code") == {}


async def test_a_load_longer_than_anybody_is_held_for_is_waited_for_by_asking_again(
    fleet: Any,
) -> None:
    """After `load_wait_s` a whole answer is a 503 that says when to ask again, which both packages do by themselves."""
    model = "echo/cold?load_s=3"
    gateway = await open_gateway(fleet, model, wait_s=0.5)
    async with clients(gateway, PATIENCE_S) as by:
        texts = await ask_all(WHOLE, by, model)
    assert texts == ["one two three"] * 3
    assert await gateway.counts("cortex_cold_starts_total") == {model: 1.0}
    assert await gateway.counts("cortex_rejections_total", "code") == {"model_loading": 3.0}
