# SPDX-License-Identifier: GPL-3.0-or-later
"""Fields that OpenAI publishes and vLLM knows nothing of are named as dropped; those that are null are left open."""

import typing
from typing import Any

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses

pytestmark = pytest.mark.asyncio(loop_scope="session")

PORT = "Which port does the gateway use?"
# What is asked, by the type that holds what may be; and what of it is refused, since it would change the answer.
CASES: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "/v1/chat/completions": (
        chat.CompletionCreateParamsBase,
        {"messages": [{"role": "user", "content": PORT}], "max_tokens": 1},
        set(),
    ),
    "/v1/completions": (
        completions.CompletionCreateParamsBase,
        {"prompt": PORT, "max_tokens": 1},
        set(),
    ),
    "/v1/responses": (
        responses.ResponseCreateParamsBase,
        {"input": PORT, "max_output_tokens": 1},
        {"conversation", "previous_response_id", "background"},
    ),
}


@pytest.mark.parametrize("path", CASES)
async def test_what_vllm_does_not_know_is_named(model: Any, path: str) -> None:
    from neuron.host.engines.vllm_library import ROUTES

    published, asked, refused = CASES[path]
    unknown = typing.get_type_hints(published).keys() - ROUTES[path].known.keys() - refused
    answer = await model.post(path, {"model": "m", **asked, **dict.fromkeys(unknown, "x")})
    assert answer.status == 200, answer.body
    assert answer.header(b"x-cortex-dropped").decode().split(", ") == sorted(unknown)


HELLO = [{"role": "user", "content": PORT}]
FUNCTION = {"name": "f", "parameters": {}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"messages": [{"role": "user", "content": PORT, "foo": 1}]}, "messages.foo"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": PORT, "foo": 1}]}]}, "messages.content.foo"),
        ({"messages": [{"role": "assistant", "content": PORT, "audio": {"id": "a"}}]}, "messages.audio"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "foo": 1}]}]}, "messages.tool_calls.foo"),
        ({"tools": [{**TOOL, "foo": 1}]}, "tools.foo"),
        ({"tools": [{**TOOL, "function": {**FUNCTION, "foo": 1}}]}, "tools.function.foo"),
        ({"stream": True, "stream_options": {"foo": 1}}, "stream_options.foo"),
        ({"response_format": {"type": "json_object", "foo": 1}}, "response_format.foo"),
    ],
)  # fmt: skip
async def test_what_vllm_does_not_know_of_the_objects_of_a_chat_is_named(
    model: Any, fields: dict[str, Any], name: str
) -> None:
    answer = await model.post(
        "/v1/chat/completions", {"model": "m", "messages": HELLO, "max_tokens": 1, **fields}
    )
    assert answer.status == 200, answer.body
    assert answer.header(b"x-cortex-dropped") == name.encode()


async def test_a_chat_with_all_that_clients_write_loses_nothing(model: Any) -> None:
    said = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": PORT, "name": "ada"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "x"},
        {"role": "assistant", "content": "x", "reasoning_content": "y"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "user", "content": PORT},
    ]  # fmt: skip
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = await model.chat(
        said,
        tools=[{**TOOL, "function": {**FUNCTION, "strict": False, "description": "x"}}],
        tool_choice="none",
        response_format=form,
        max_tokens=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert answer.status == 200, answer.body
    assert answer.header(b"x-cortex-dropped") is None


@pytest.mark.parametrize("path", CASES)
async def test_what_is_null_is_left_open(model: Any, path: str) -> None:
    from neuron.host.engines.vllm_library import ROUTES

    _, asked, _ = CASES[path]
    nulls = dict.fromkeys(ROUTES[path].known.keys() - asked.keys())
    answer = await model.post(path, {**nulls, **asked})
    assert answer.status == 200, answer.body
    assert answer.header(b"x-cortex-dropped") is None
