# SPDX-License-Identifier: GPL-3.0-or-later
"""Anthropic's own package against gateway, neuron and the demo model on real vLLM."""

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
import pytest_asyncio

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
]

if importlib.util.find_spec("vllm") is None:
    if os.environ.get("CI") == "true":
        raise RuntimeError("vllm is not installed, and CI must not go without it")
    pytest.skip("not run: vllm is not installed", allow_module_level=True)

DEMO = "helexa/demo"
TOOLS: Any = [
    {
        "name": "get_weather",
        "description": "Get the current weather for a city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    }
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(demo_fleet: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    _, gateway = demo_fleet
    async with anthropic.AsyncAnthropic(
        base_url=gateway.endpoint, api_key="none", max_retries=0
    ) as made:
        yield made


def ask(text: str, **fields: Any) -> Any:
    return {
        "model": DEMO,
        "max_tokens": 300,
        "messages": [{"role": "user", "content": text}],
        **fields,
    }


async def test_a_plain_question_has_its_exact_answer(client: anthropic.AsyncAnthropic) -> None:
    answer = await client.messages.create(**ask("What is the capital of France?"))
    (block,) = answer.content
    assert (block.type, block.text) == ("text", "The capital of France is Paris.")
    assert (answer.stop_reason, answer.model) == ("end_turn", DEMO)
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0


async def test_a_stream_is_gathered_to_the_same_answer(client: anthropic.AsyncAnthropic) -> None:
    asked = ask(
        "Who are you?", thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2000
    )
    pieces = 0
    async with client.messages.stream(**asked) as stream:
        async for event in stream:
            pieces += event.type == "content_block_delta"
        gathered = await stream.get_final_message()
    whole = await client.messages.create(**asked)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert [_dump(b) for b in gathered.content] == [_dump(b) for b in whole.content]
    assert gathered.stop_reason == "end_turn"
    assert pieces > 5


def _dump(block: Any) -> Any:
    """A block as it was sent: a field of its own is what a major adds to blocks of streams."""
    return block.model_dump(exclude={"parsed_output"})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_its_result_is_used(
    client: anthropic.AsyncAnthropic, stream: bool
) -> None:
    asked = ask("What is the weather in Paris?", tools=TOOLS)
    if stream:
        async with client.messages.stream(**asked) as opened:
            answer: Any = await opened.get_final_message()
    else:
        answer = await client.messages.create(**asked)
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    assert answer.stop_reason == "tool_use"
    result = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": '{"temp_c": 18, "sky": "sunny"}',
    }
    asked["messages"] += [
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    final: Any = await client.messages.create(**asked)
    assert final.content[-1].type == "text"
    assert "18" in final.content[-1].text


async def test_the_length_limit_is_told(client: anthropic.AsyncAnthropic) -> None:
    answer = await client.messages.create(**ask("Count to twenty.", max_tokens=5))
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 5


TURNS: Any = [
    {"role": "user", "content": "What is the weather in Paris?"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "I must ask.", "signature": "x"},
            {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Paris"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": "18, sunny"},
            {"type": "text", "text": "And?"},
        ],
    },
]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"system": "Be brief."},
        {"system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": {"type": "none"}},
        {"tools": TOOLS, "messages": TURNS},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am"}]},
    ],
    ids=["system", "system blocks", "tools", "tools unused", "a tool turn", "a begun answer"],
)
async def test_a_count_is_what_the_message_costs(
    client: anthropic.AsyncAnthropic, fields: Any, thinking: bool
) -> None:
    if thinking:
        fields = {**fields, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    asked = ask("Who are you?", **fields)
    usage = (await client.messages.create(**asked | {"max_tokens": 3})).usage
    cost = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    del asked["max_tokens"]
    assert (await client.messages.count_tokens(**asked)).input_tokens == cost


async def test_counts_come_in_bursts(client: anthropic.AsyncAnthropic) -> None:
    asked: Any = {"model": DEMO, "messages": TURNS[:1], "tools": TOOLS}
    async with asyncio.TaskGroup() as tasks:
        counts = [tasks.create_task(client.messages.count_tokens(**asked)) for _ in range(20)]
    assert len({count.result().input_tokens for count in counts}) == 1


async def test_the_models_are_listed(client: anthropic.AsyncAnthropic) -> None:
    assert [model.id async for model in client.models.list()] == [DEMO]
    assert (await client.models.retrieve(DEMO)).id == DEMO


async def test_mistakes_are_the_sdks_own_exceptions(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(**ask("x") | {"model": "nobody/knows"})
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        await client.messages.create(**ask("word " * 20000))
    with pytest.raises(anthropic.BadRequestError) as wrong:
        await client.messages.create(**ask("x"), extra_body={"temperature": "hot"})
    body: Any = wrong.value.body
    assert body["error"]["type"] == "invalid_request_error"
    assert body["request_id"]
