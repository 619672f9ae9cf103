# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's own package, as users have it, against gateway, neuron and the demo model on real vLLM."""

import asyncio
import importlib.util
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import openai
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
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather for a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(demo_fleet: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url = f"{demo_fleet[1].endpoint}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as made:
        yield made


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


async def test_a_plain_question_has_its_exact_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=DEMO, messages=user("What is the capital of France?"), temperature=0
    )
    message = answer.choices[0].message
    assert message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == DEMO
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_reasoning_stands_apart_from_the_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=DEMO, messages=user("What is 2 + 3?"), temperature=0
    )
    message: Any = answer.choices[0].message
    assert message.reasoning_content
    assert "<think>" not in message.content
    assert message.content == message.content.strip()


async def test_a_stream_comes_as_the_engine_makes_it(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=DEMO,
        messages=user("Count to twenty."),
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    text, times_s, usage, finish = "", [], None, None
    async for chunk in stream:
        times_s.append(time.monotonic())
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    assert text.startswith("1, 2, 3, 4, 5, 6, 7, 8, 9, 10")
    assert finish == "stop"
    assert usage is not None
    # a role chunk, one for each few tokens, a finish and a usage chunk, over time and not at once
    assert len(times_s) > usage.completion_tokens / 3
    assert len({round(at, 3) for at in times_s}) > 5


async def test_a_stream_and_a_whole_answer_say_the_same(client: openai.AsyncOpenAI) -> None:
    question: Any = {"model": DEMO, "messages": user("Who are you?"), "temperature": 0}
    whole = await client.chat.completions.create(**question)
    stream = await client.chat.completions.create(**question, stream=True)
    content = reasoning = ""
    async for chunk in stream:
        delta: Any = chunk.choices[0].delta
        content += delta.content or ""
        reasoning += getattr(delta, "reasoning_content", None) or ""
    message: Any = whole.choices[0].message
    assert (content, reasoning) == (message.content, message.reasoning_content)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_its_result_is_used(
    client: openai.AsyncOpenAI, stream: bool
) -> None:
    question: Any = {"model": DEMO, "temperature": 0, "tools": TOOLS}
    messages = user("What is the weather in Paris?")
    name, arguments, finish = await _tool_call(client, question, messages, stream)
    assert (name, json.loads(arguments), finish) == ("get_weather", {"city": "Paris"}, "tool_calls")


async def _tool_call(
    client: openai.AsyncOpenAI, question: Any, messages: Any, stream: bool
) -> tuple[str, str, str]:
    if not stream:
        answer = await client.chat.completions.create(**question, messages=messages)
        (call,) = answer.choices[0].message.tool_calls or []
        function: Any = getattr(call, "function")  # noqa: B009 - a union of kinds of call
        return function.name, function.arguments, answer.choices[0].finish_reason
    name = arguments = finish = ""
    async for chunk in await client.chat.completions.create(
        **question, messages=messages, stream=True
    ):
        for part in chunk.choices[0].delta.tool_calls or []:
            assert part.function
            name += part.function.name or ""
            arguments += part.function.arguments or ""
        finish = chunk.choices[0].finish_reason or finish
    return name, arguments, finish


async def test_a_completion_is_answered(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model=DEMO, prompt="The capital of France is", max_tokens=4, temperature=0
    )
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"


async def test_the_models_are_listed(client: openai.AsyncOpenAI) -> None:
    (model,) = [m async for m in client.models.list()]
    assert model.id == DEMO
    extra: Any = model
    assert extra.loaded is True
    assert extra.residency == "serving"
    assert "tools" in extra.capabilities
    assert extra.max_model_len >= 1024
    assert (await client.models.retrieve(DEMO)).id == DEMO


async def test_mistakes_are_the_sdks_own_exceptions(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="nobody/knows", messages=user("x"))
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model=DEMO, messages=user("x"), temperature=-1)
    assert wrong.value.code == "invalid_request_body"
    with pytest.raises(openai.BadRequestError) as long:
        await client.chat.completions.create(model=DEMO, messages=user("word " * 20000))
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine_within_a_second(
    client: openai.AsyncOpenAI, demo_fleet: Any, stream: bool
) -> None:
    neuron, _ = demo_fleet

    async def talk() -> None:
        answer: Any = await client.chat.completions.create(
            model=DEMO,
            messages=user("Write a short story."),
            stream=stream,
            max_tokens=3000,
            extra_body={"ignore_eos": True},
        )
        if stream:
            async for _ in answer:
                pass

    request = asyncio.create_task(talk())
    await neuron.until("/health", lambda h: h["models"][0]["running"] == 1, 10)
    request.cancel()
    await asyncio.wait({request})
    await neuron.until("/health", lambda h: h["models"][0]["running"] == 0, within_s=1)


async def test_many_at_once_are_each_answered_with_their_own(client: openai.AsyncOpenAI) -> None:
    async def one(a: int, b: int) -> str | None:
        answer = await client.chat.completions.create(
            model=DEMO, messages=user(f"What is {a} + {b}?"), temperature=0
        )
        return answer.choices[0].message.content

    pairs = [(a, b) for a in range(2, 6) for b in range(2, 6)]
    answers = await asyncio.gather(*(one(a, b) for a, b in pairs))
    assert answers == [f"{a} + {b} = {a + b}." for a, b in pairs]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_response_cannot_carry_is_named(
    client: openai.AsyncOpenAI, stream: bool
) -> None:
    fields: Any = {
        "tools": [{"type": "web_search"}],
        "input": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}, *user("Hi")],
    }
    raw = await client.responses.with_raw_response.create(model=DEMO, stream=stream, **fields)
    assert raw.headers["x-cortex-dropped"] == "input.web_search_call, tools.web_search"
