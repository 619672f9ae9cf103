# SPDX-License-Identifier: GPL-3.0-or-later
"""Chat, completions and the rest, on the real engine: what goes out on the wire."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

pytestmark = pytest.mark.asyncio(loop_scope="session")

PORT = "Which port does the gateway use?"
PORT_REASONING = "This is a question about cortex. My script has the answer."
PORT_CONTENT = "The gateway listens on port 31313."
THOUGHT = f"<think>\n{PORT_REASONING}\n</think>\n\n{PORT_CONTENT}"
WEATHER = "What is the weather in Paris?"
# From the engine's first step on, where vLLM would compile what logprobs need; a heartbeat meanwhile.
AT_ONCE_S = 15.0
SILENT_S = 5.0
TOOLS = [
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
    },
    {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Evaluate an arithmetic expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    },
]


async def test_the_start_tells_how_far_it_is_and_what_came_up(model: Any) -> None:
    assert list(model.phases) == ["importing", "configuring", "loading", "warming_up"]
    assert model.ready.capabilities == ["text", "tools", "reasoning"]
    assert model.ready.limits.context == 4096
    assert model.ready.max_running == 8
    (rank,) = model.ready.ranks
    assert 0 < rank.pop("free_mb") <= rank.pop("total_mb")
    assert rank == {
        "rank": 0,
        "vocab_size": 2048,
        "hidden_size": 128,
        "num_layers": 4,
        "head_dim": 64,
        "num_kv_heads": 2,
        "max_position_embeddings": 4096,
        "kv_bytes_per_token": 2048,
    }
    assert {"vllm", "torch"} <= model.ready.versions.keys()


async def test_sampling_is_the_request_s_then_the_model_s_then_the_default(model: Any) -> None:
    """The demo model's generation_config.json has temperature 0, and nothing of top_k; vLLM's own default would be 1."""
    asked = {"model": "helexa/demo", "messages": [{"role": "user", "content": PORT}]}

    async def say(**fields: Any) -> str:
        answer = await model.post("/v1/chat/completions", {**asked, "max_tokens": 8, **fields})
        return str(answer.json["choices"][0]["message"]["reasoning_content"])

    hot = {"temperature": 2.0, "seed": 1}
    greedy, own, wild, again, narrow = await asyncio.gather(
        say(temperature=0), say(seed=1), say(**hot), say(**hot), say(**hot, top_k=1)
    )
    assert greedy == own == narrow
    assert greedy.startswith("This is a question")
    assert wild == again != greedy


async def test_a_whole_answer_has_reasoning_apart_from_content(model: Any) -> None:
    answer = await model.chat(PORT)
    assert answer.status == 200
    assert answer.json["model"] == "helexa/demo"
    (choice,) = answer.json["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": PORT_CONTENT,
        "reasoning_content": PORT_REASONING,
    }
    assert choice["finish_reason"] == "stop"
    assert answer.json["usage"]["completion_tokens_details"]["reasoning_tokens"] > 5
    assert "service_tier" not in answer.json


async def test_a_stream_tells_the_same_piece_by_piece(model: Any) -> None:
    answer = await model.chat(PORT, stream=True)
    assert answer.header(b"content-type") == b"text/event-stream"
    chunks = model.read_stream(answer)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all(deltas[1:-1])
    assert deltas[-1] == {}
    assert "".join(d.get("reasoning_content", "") for d in deltas) == PORT_REASONING
    assert "".join(d.get("content", "") for d in deltas) == PORT_CONTENT
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + [
        "stop"
    ]
    assert all("usage" not in chunk for chunk in chunks)
    assert len(answer.chunks) > 10


async def test_the_usage_chunk_comes_when_asked_for(model: Any) -> None:
    answer = await model.chat(PORT, stream=True, stream_options={"include_usage": True})
    *_, last = model.read_stream(answer)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 10
    assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] > 5


@pytest.mark.parametrize("asked", [False, True])
async def test_the_gateway_gets_the_usage_in_a_comment(model: Any, asked: bool) -> None:
    answer = await model.chat(
        PORT,
        headers=[(b"x-cortex-usage", b"1")],
        stream=True,
        stream_options={"include_usage": asked},
    )
    chunks = model.read_stream(answer)
    assert ([] in [chunk["choices"] for chunk in chunks]) is asked
    comment = answer.body.decode().split("\n\n")[-3]
    usage = msgspec.json.decode(comment.removeprefix(": usage "))
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert usage["completion_tokens"] > 10


async def test_what_was_read_before_is_counted_as_cached(model: Any) -> None:
    said = "Say " + "hello " * 60
    await model.chat(said, max_tokens=1)
    again = await model.chat(said, max_tokens=1)
    assert again.json["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_goes_back_into_the_content_when_asked_for(model: Any, stream: bool) -> None:
    answer = await model.chat(PORT, headers=[(b"x-include-thinking", b"yes")], stream=stream)
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in model.read_stream(answer)]
        assert not any("reasoning_content" in delta for delta in deltas)
        content = "".join(delta.get("content", "") for delta in deltas)
    else:
        content = answer.json["choices"][0]["message"]["content"]
    assert content == THOUGHT


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_can_be_turned_off(model: Any, stream: bool) -> None:
    answer = await model.chat(PORT, stream=stream, chat_template_kwargs={"enable_thinking": False})
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in model.read_stream(answer)]
        assert "".join(delta.get("content", "") for delta in deltas) == PORT_CONTENT
        assert not any("reasoning_content" in delta for delta in deltas)
    else:
        message = answer.json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": PORT_CONTENT}


async def test_an_answer_cut_off_while_thinking_is_all_reasoning(model: Any) -> None:
    answer = await model.chat(PORT, max_tokens=5)
    (choice,) = answer.json["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] is None
    assert PORT_REASONING.startswith(choice["message"]["reasoning_content"])


async def test_a_tool_is_called(model: Any) -> None:
    answer = await model.chat(WEATHER, tools=TOOLS)
    (choice,) = answer.json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "get_weather"
    assert msgspec.json.decode(call["function"]["arguments"]) == {"city": "Paris"}


async def test_a_tool_is_called_in_a_stream_without_stray_text(model: Any) -> None:
    chunks = model.read_stream(await model.chat(WEATHER, tools=TOOLS, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert not any(delta.get("content") for delta in deltas)
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls[0]["id"]
    assert calls[0]["function"] == {"name": "get_weather", "arguments": ""}
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert msgspec.json.decode(arguments) == {"city": "Paris"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_json_keeps_to_its_schema(model: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "record", "schema": schema}}
    answer = await model.chat("Give me a JSON record for Ada.", response_format=wanted)
    content = answer.json["choices"][0]["message"]["content"]
    assert content == '{"name":"Ada","age":36}'


HISTORIES: list[list[dict[str, Any]]] = [
    [{"role": "assistant", "content": None, "reasoning_content": "Hm."}],
    [{"role": "assistant", "reasoning": "Hm.", "content": "Hello!"}],
    [{"role": "assistant", "content": "Hello!", "reasoning_content": None}],
    [
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ],
]


@pytest.mark.parametrize("history", HISTORIES)
async def test_histories_as_clients_send_them_are_taken(
    model: Any, history: list[dict[str, Any]]
) -> None:
    first = {"role": "user", "content": "Hello"}
    answer = await model.chat(
        [first, *history, {"role": "user", "content": PORT}],
        max_tokens=3,
        chat_template_kwargs={"enable_thinking": False},
    )
    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["content"]


def called(arguments: Any, **fields: Any) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    call = {"id": "c", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call], **fields}


SYSTEM, HELLO = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}
SUNNY = {"role": "tool", "tool_call_id": "c", "content": "sunny"}
TEXT_PARTS = [{"type": "text", "text": "sunny"}]
# What lenient clients send, and the same by the book.
LENIENT: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "a developer": ([SYSTEM | {"role": "developer"}, HELLO], [SYSTEM, HELLO]),
    "a system of parts": (
        [SYSTEM | {"content": [{"type": "text", "text": "Be brief."}]}, HELLO],
        [SYSTEM, HELLO],
    ),
    "arguments as an object": (
        [HELLO, called({"city": "Paris"}), SUNNY],
        [HELLO, called('{"city": "Paris"}'), SUNNY],
    ),
    "a tool's parts": (
        [HELLO, called("{}"), SUNNY | {"content": TEXT_PARTS}],
        [HELLO, called("{}"), SUNNY],
    ),
    "no arguments": ([HELLO, called(""), SUNNY], [HELLO, called("{}"), SUNNY]),
    "null arguments": ([HELLO, called(None), SUNNY], [HELLO, called("{}"), SUNNY]),
    "no content": (
        [HELLO, {k: v for k, v in called("{}").items() if k != "content"}, SUNNY],
        [HELLO, called("{}"), SUNNY],
    ),
    "a tool that says null": (
        [HELLO, called("{}"), SUNNY | {"content": None}],
        [HELLO, called("{}"), SUNNY | {"content": ""}],
    ),
    "a user who says null": ([{"role": "user", "content": None}], [{"role": "user", "content": ""}]),
    "fields of an answer that is replayed": (
        [HELLO, called("{}", refusal=None, annotations=[], audio=None, function_call=None), SUNNY],
        [HELLO, called("{}"), SUNNY],
    ),
    "no calls": (
        [HELLO, {"role": "assistant", "content": "Hi", "tool_calls": []}, HELLO],
        [HELLO, {"role": "assistant", "content": "Hi"}, HELLO],
    ),
    "null for no calls": (
        [HELLO, {"role": "assistant", "content": "Hi", "tool_calls": None, "name": None}, HELLO],
        [HELLO, {"role": "assistant", "content": "Hi"}, HELLO],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LENIENT)
async def test_lenient_forms_are_the_same_prompt(model: Any, case: str) -> None:
    lenient, strict = LENIENT[case]
    prompts = []
    for messages in (strict, lenient):
        found = await model.post("/tokenize", {"messages": messages, "tools": TOOLS})
        assert found.status == 200, found.body
        prompts.append(found.json["tokens"])
    assert prompts[0] == prompts[1]
    found = await model.chat(lenient, tools=TOOLS, max_tokens=1, unknown={"a": 1}, store=True)
    assert (found.status, found.header(b"x-cortex-dropped")) == (200, b"store, unknown")


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": 2}, {"tools": TOOLS}, {"logprobs": True, "top_logprobs": 1, "max_tokens": 3},
     {"n": 2, "temperature": 1, "max_tokens": 2}],
    ids=["plain", "tools", "logprobs", "n"],
)  # fmt: skip
async def test_answers_are_what_openai_s_own_types_say(model: Any, fields: Any) -> None:
    said = WEATHER if "tools" in fields else PORT
    whole = await model.chat(said, **fields)
    ChatCompletion.model_validate_json(whole.body, strict=True)
    for choice in whole.json["choices"]:
        assert {"index", "finish_reason", "logprobs", "message"} <= choice.keys()
        assert {"role", "content"} <= choice["message"].keys()
    streamed = await model.chat(said, stream=True, stream_options={"include_usage": True}, **fields)
    for chunk in model.read_stream(streamed):
        ChatCompletionChunk.model_validate_json(msgspec.json.encode(chunk), strict=True)
        assert all({"index", "delta", "finish_reason"} <= c.keys() for c in chunk["choices"])


async def test_several_choices_come_side_by_side(model: Any) -> None:
    answer = await model.chat(PORT, n=2, temperature=0.01, seed=1, stream=True)
    texts = {0: "", 1: ""}
    for chunk in model.read_stream(answer):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: PORT_CONTENT, 1: PORT_CONTENT}


async def test_the_same_seed_gives_the_same_text(model: Any) -> None:
    first, second, other = [
        (await model.chat("Hello", temperature=2, seed=seed, max_tokens=40)).json["choices"]
        for seed in (7, 7, 8)
    ]
    assert first == second
    assert first != other


async def test_a_seeded_request_with_a_long_prompt_does_not_kill_the_engine(model: Any) -> None:
    answer = await model.chat("hello " * 1500, temperature=1, seed=3, max_tokens=4)
    assert answer.status == 200


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_beyond_the_context_is_what_fits(model: Any, limit: str) -> None:
    answer = await model.chat(PORT, **{limit: 32_000})
    assert answer.json["choices"][0]["finish_reason"] == "stop"


async def test_stop_words_end_an_answer(model: Any) -> None:
    # As many as Anthropic's API would take.
    answer = await model.chat(PORT, stop=[*"!?#%&", "port 3"])
    message = answer.json["choices"][0]["message"]
    assert message["content"] == "The gateway listens on "


async def test_logprobs_are_given(model: Any) -> None:
    answer = await model.chat(PORT, max_tokens=3, logprobs=True, top_logprobs=1)
    tokens = answer.json["choices"][0]["logprobs"]["content"]
    assert tokens[0]["token"] == "<think>"
    assert len(tokens) == 3


async def test_the_first_logprobs_of_a_fresh_engine_come_at_once(
    run_dir: Path, start_model: Any
) -> None:
    fresh = await start_model(run_dir)
    warming_s = time.monotonic() - fresh.phases["warming_up"]
    async with asyncio.timeout(AT_ONCE_S - warming_s), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(fresh.chat(PORT, max_tokens=3, logprobs=True, top_logprobs=20))
        while not asking.done():
            async with asyncio.timeout(SILENT_S):
                await fresh.engine.beat()
            await asyncio.sleep(0.02)
    tokens = asking.result().json["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in tokens] == [20, 20, 20]
    await fresh.engine.stop()


async def test_a_completion_whole_and_streamed(model: Any) -> None:
    asked = {
        "model": "helexa/demo",
        "prompt": f"<|im_start|>user\n{PORT}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "max_tokens": 60,
        "temperature": 0,
    }
    answer = await model.post("/v1/completions", asked)
    assert answer.json["choices"][0]["text"] == PORT_CONTENT
    streamed = await model.post("/v1/completions", {**asked, "stream": True})
    texts = [chunk["choices"][0]["text"] for chunk in model.read_stream(streamed)]
    assert "".join(texts) == PORT_CONTENT
    assert len(texts) > 3


async def test_responses_and_tokenize_answer_too(model: Any) -> None:
    answer = await model.post("/v1/responses", {"input": PORT, "temperature": 0, "store": False})
    assert answer.json["output"][-1]["content"][0]["text"].strip() == PORT_CONTENT
    tokens = await model.post("/tokenize", {"prompt": "hello"})
    assert tokens.json["count"] == len(tokens.json["tokens"]) > 0


async def test_what_a_model_cannot_do_has_no_route(model: Any) -> None:
    assert "/v1/embeddings" not in model.engine.routes()


async def test_the_engine_counts_what_ends_and_how_long_its_parts_took(model: Any) -> None:
    before = model.engine.activity().counts
    assert (await model.chat(PORT, max_tokens=5)).status == 200
    after = model.engine.activity().counts
    assert after.finished == before.finished + 1
    assert after.prefill_s > before.prefill_s
    assert after.decode_s > before.decode_s
    assert after.queue_s > before.queue_s
