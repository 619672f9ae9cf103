# SPDX-License-Identifier: GPL-3.0-or-later
"""The Responses API on real vLLM, as OpenAI's own package reads it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pytest
import pytest_asyncio

from cortex_core.http.front import Front
from cortex_core.testing import serving

pytestmark = pytest.mark.asyncio(loop_scope="session")

PATH = "/v1/responses"
DEMO = "helexa/demo"
PORT = "Which port does the gateway use?"
PORT_REASONING = "This is a question about cortex. My script has the answer."
PORT_CONTENT = "The gateway listens on port 31313."
WEATHER = "What is the weather in Paris?"
REPORT = '{"temp_c": 21, "sky": "sunny"}'
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
OTHER: Any = {
    "type": "function",
    "name": "calculator",
    "description": "Evaluate an arithmetic expression.",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
    },
}
TOOLS = [TOOL, OTHER]
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
SEARCH = {"type": "web_search"}
LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}
PATCH = {"type": "custom", "name": "apply_patch", "format": LARK}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(model: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    app = Front(daemon="neuron", hot=model.engine.routes(), routes=[])
    async with serving(app) as endpoint:
        base_url = f"{endpoint}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as made:
            yield made


async def ask(model: Any, said: Any = PORT, **fields: Any) -> Any:
    return await model.post(PATH, {"model": DEMO, "input": said, "temperature": 0, **fields})


def read_texts(response: Any) -> dict[str, str]:
    return {item.type: item.content[0].text for item in response.output if hasattr(item, "content")}


async def test_a_whole_response(client: openai.AsyncOpenAI) -> None:
    response = await client.responses.create(model=DEMO, input=PORT, temperature=0)
    assert response.output_text == PORT_CONTENT
    assert read_texts(response) == {"reasoning": PORT_REASONING, "message": PORT_CONTENT}
    assert (response.status, response.model, response.error) == ("completed", DEMO, None)
    usage = response.usage
    assert usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens > 5
    assert usage.input_tokens_details.cached_tokens >= 0


async def test_a_stream_has_the_events_of_the_protocol(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model=DEMO, input=PORT, temperature=0) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    kinds = [event.type for event in events]
    expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [
        kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before
    ] == (expected)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    spoken = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert spoken == PORT_CONTENT
    assert final.output_text == PORT_CONTENT
    assert read_texts(final) == {"reasoning": PORT_REASONING, "message": PORT_CONTENT}
    assert final.usage
    assert final.usage.output_tokens > 10


async def test_a_tool_is_called_and_its_result_is_read(client: openai.AsyncOpenAI) -> None:
    whole = await client.responses.create(model=DEMO, input=WEATHER, tools=TOOLS, temperature=0)
    async with client.responses.stream(
        model=DEMO, input=WEATHER, tools=TOOLS, temperature=0
    ) as stream:
        events = [event async for event in stream]
        streamed = await stream.get_final_response()
    for response in (whole, streamed):
        assert [item.type for item in response.output] == ["reasoning", "function_call"]
        call: Any = response.output[1]
        assert (call.name, call.arguments) == ("get_weather", '{"city": "Paris"}')
        assert call.call_id
    arguments = [e for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(event.delta for event in arguments) == '{"city": "Paris"}'
    assert {event.output_index for event in arguments} == {1}
    call = whole.output[1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": REPORT}
    said: Any = [{"role": "user", "content": WEATHER}, *whole.output, result]
    after = await client.responses.create(model=DEMO, input=said, tools=TOOLS, temperature=0)
    assert after.output_text == "It is 21 degrees and sunny in Paris."


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_cut_off_says_so(model: Any, stream: bool) -> None:
    answer = await ask(model, max_output_tokens=3, stream=stream)
    if stream:
        assert b"[DONE]" not in answer.body
        last = answer.body.decode().split("\n\n")[-2]
        assert last.startswith("event: response.incomplete\n")
        response = msgspec.json.decode(last.split("data: ", 1)[1])["response"]
    else:
        response = answer.json
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert response["tool_choice"] == "auto"


async def test_a_response_tells_which_form_was_asked_for(model: Any) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    wanted = {"format": {"type": "json_schema", "name": "record", "schema": schema}}
    answer = await ask(model, text=wanted, max_output_tokens=60)
    assert answer.json["text"]["format"]["schema"] == schema


@pytest.mark.parametrize("store", [{}, {"store": None}, {"store": True}, {"store": False}])
async def test_nothing_is_kept(model: Any, store: dict[str, Any]) -> None:
    assert (await ask(model, max_output_tokens=2, **store)).status == 200
    held = model.engine._running.state.openai_serving_responses
    kept = (held.response_store, held.msg_store, held.event_store, held.background_tasks)
    assert not any(kept)


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(("background", "metadata", "service_tier", "tools", "truncation")),
        {"tools": [{"type": "web_search"}], "include": ["reasoning.encrypted_content"]},
        {"input": [{"role": "user", "content": PORT}]},
        {"input": [{"type": "item_of_another_server"}, {"role": "user", "content": PORT}]},
        {
            "input": [
                {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]},
                {"type": "reasoning", "summary": [], "encrypted_content": "AAAA"},
                {"role": "user", "content": [{"type": "input_text", "text": PORT}]},
            ]
        },
    ],
)
async def test_requests_as_clients_send_them_are_taken(model: Any, fields: Any) -> None:
    answer = await ask(model, **{"max_output_tokens": 4, "stream": False, **fields})
    assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"tools": [PATCH, TOOL]}, "tools.custom.format"),
        ({"tools": [SEARCH], "tool_choice": SEARCH}, "tools.web_search, tool_choice"),
        ({"tools": [SEARCH], "tool_choice": "required"}, "tools.web_search, tool_choice"),
        ({"tools": [TOOL, SEARCH], "tool_choice": SEARCH}, "tools.web_search, tool_choice"),
        ({"include": ["web_search_call.results", "web_search_call.action.sources"]}, "include"),
    ],
)
async def test_what_only_other_servers_can_do_is_named(model: Any, fields: Any, names: str) -> None:
    answer = await ask(model, max_output_tokens=2, **fields)
    assert answer.status == 200, answer.body
    assert answer.header(b"x-cortex-dropped") == names.encode()


async def test_only_tools_that_are_allowed_are_called(model: Any) -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [OTHER]}
    answer = await ask(model, WEATHER, tools=TOOLS, tool_choice=allowed)
    calls = [item["name"] for item in answer.json["output"] if item["type"] == "function_call"]
    assert set(calls) == {"calculator"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"previous_response_id": "resp_1"}, "chained_conversation_not_supported"),
        ({"background": True}, "invalid_request_body"),
        ({"input": "hello " * 9000}, "context_length_exceeded"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "vision_unsupported"),
        ({"input": [{"role": "user", "content": [{"type": ["odd"]}]}]}, "invalid_request_body"),
        ({"input": []}, "invalid_request_body"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "invalid_request_body"),
        ({"max_output_tokens": -1}, "invalid_request_body"),
    ],
)
async def test_refusals(model: Any, fields: Any, code: str, stream: bool) -> None:
    answer = await ask(model, **{**fields, "stream": stream})
    assert (answer.status, answer.json["error"]["code"]) == (400, code)


NAMELESS = {"type": "function_call", "call_id": "c", "name": "f"}


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"input": [{**NAMELESS, "arguments": {}}]}, "input.0.arguments", "a valid string"),
        ({"input": [NAMELESS]}, "input.0.arguments", "Field required"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input.0.output", "Field required"),
        ({"input": [{"role": "user", "content": [{"type": "odd"}]}]}, "input.0.content.0.type", "'input_text', 'input_image'"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text", "Field required"),
        ({"input": [{"role": "odd", "content": "x"}]}, "input.0.role", "'user', 'assistant'"),
        ({"input": 3}, "input", "a valid string"),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "Field required"),
    ],
)  # fmt: skip
async def test_the_field_at_fault_is_named(model: Any, fields: Any, param: str, told: str) -> None:
    error = (await ask(model, **fields)).json["error"]
    assert error["param"] == param, error
    assert told in error["message"]


@pytest.mark.parametrize("path", [PATH, "/v1/chat/completions"])
async def test_json_that_is_too_deep_is_malformed(model: Any, path: str) -> None:
    answer = await model.post(path, b'{"input":' + b"[" * 20_000 + b"]" * 20_000 + b"}")
    assert (answer.status, answer.json["error"]["code"]) == (400, "malformed_json")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_engine(model: Any, stream: bool) -> None:
    leave = asyncio.Event()
    asked = ask_long(model, leave, stream)
    task = asyncio.create_task(asked)
    async with asyncio.timeout(5):
        while model.engine.activity().running != 1:
            await asyncio.sleep(0.005)
    leave.set()
    async with asyncio.timeout(1):
        while model.engine.activity().running != 0:
            await asyncio.sleep(0.005)
    answer = await task
    assert stream or not answer.messages  # nobody is there to be told of an error


async def ask_long(model: Any, leave: asyncio.Event, stream: bool) -> Any:
    fields = {"max_output_tokens": 4000, "ignore_eos": True, "stream": stream}
    return await model.post(PATH, {"model": DEMO, "input": "Count.", **fields}, leave=leave)


COMPLETIONS: list[dict[str, Any]] = [
    {"n": 2, "temperature": 1, "seed": 1, "logprobs": 1, "echo": True},
    {"max_tokens": 0, "echo": True, "logprobs": 1},
    {"prompt": ["The", "A"], "stream": True, "logprobs": 1, "echo": True},
    {"best_of": 2},
]


@pytest.mark.parametrize("fields", COMPLETIONS)
async def test_rarer_fields_of_completions_are_served(model: Any, fields: dict[str, Any]) -> None:
    asked = {"model": DEMO, "prompt": "The", "max_tokens": 2, **fields}
    answer = await model.post("/v1/completions", asked)
    assert answer.status == 200, answer.body
    if not fields.get("stream"):
        assert len(answer.json["choices"]) == fields.get("n", 1)


async def test_a_suffix_is_refused_where_the_model_knows_none(model: Any) -> None:
    asked = {"model": DEMO, "prompt": "The", "max_tokens": 2, "suffix": "x"}
    answer = await model.post("/v1/completions", asked)
    assert (answer.status, answer.json["error"]["param"]) == (400, "suffix")
