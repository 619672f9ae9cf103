# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools and forms on the demo model: calls that may or must be made, JSON with and without thinking."""

import asyncio
from typing import Any

import msgspec
import pytest
from scripted import read_stream, read_whole

pytestmark = pytest.mark.asyncio(loop_scope="session")

ASKED = "What is the weather in Paris?"
CALLED = (("get_weather", {"city": "Paris"}),)
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {field: {"type": "string"}},
                "required": [field],
            },
        },
    }
    for name, field in (("get_weather", "city"), ("calculator", "expression"))
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
RECORD_OF = "Give me a JSON record for Ada."
RECORD = '{"name":"Ada","age":36}'
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "record", "schema": SCHEMA}}
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


async def hear(model: Any, said: Any, **fields: Any) -> Any:
    answer = await model.chat(said, **fields)
    assert answer.status == 200, answer.body
    if fields.get("stream"):
        return read_stream(model.read_stream(answer))
    return read_whole(answer.json)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thinking", [{}, OFF], ids=["thinking", "not thinking"])
@pytest.mark.parametrize(
    "choice", ["auto", "required", NAMED, None], ids=["auto", "required", "named", "null"]
)
async def test_a_call_is_made(
    model: Any, choice: Any, thinking: dict[str, Any], stream: bool
) -> None:
    heard = await hear(model, ASKED, tools=TOOLS, tool_choice=choice, stream=stream, **thinking)
    assert (heard.content, heard.calls, heard.finish) == (None, CALLED, "tool_calls")
    assert (heard.reasoning is None) is bool(thinking)


def counter(**schema: Any) -> list[Any]:
    parameters = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, **schema},
        "required": ["a"],
    }
    return [{"type": "function", "function": {"name": "count", "parameters": parameters}}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thinking", [{}, OFF], ids=["thinking", "not thinking"])
@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "count"}}],
    ids=["required", "named"],
)
async def test_a_call_that_must_be_made_fits_its_schema(
    model: Any, choice: Any, thinking: dict[str, Any], stream: bool
) -> None:
    heard = await hear(
        model, "Hello", tools=counter(), tool_choice=choice, stream=stream, **thinking
    )
    assert heard.finish == "tool_calls"
    name, arguments = heard.calls[0]
    assert (name, type(arguments["a"])) == ("count", int)


async def test_a_schema_that_cannot_be_held_keeps_no_call_from_being_made(model: Any) -> None:
    tools = counter(b={"type": "string", "pattern": "(?<=x)y"})
    heard = await hear(model, "Hello", tools=tools, tool_choice="required", **OFF)
    assert heard.calls[0][0] == "count"


@pytest.mark.parametrize("stream", [False, True])
async def test_no_call_is_made_when_none_is_wanted(model: Any, stream: bool) -> None:
    heard = await hear(model, ASKED, tools=TOOLS, tool_choice="none", stream=stream)
    assert (heard.calls, heard.finish) == ((), "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_result_of_a_call_is_answered(model: Any, stream: bool) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    history = [
        {"role": "user", "content": ASKED},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "sunny, 21 degrees"},
    ]
    heard = await hear(model, history, tools=TOOLS, stream=stream)
    assert heard.calls == ()
    assert heard.content is not None
    assert "Paris" in heard.content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thinking", [{}, OFF], ids=["thinking", "not thinking"])
@pytest.mark.parametrize(
    "form", [BY_SCHEMA, {"type": "json_object"}], ids=["json_schema", "json_object"]
)
async def test_json_is_all_of_the_content(
    model: Any, form: Any, thinking: dict[str, Any], stream: bool
) -> None:
    heard = await hear(
        model, RECORD_OF, response_format=form, stream=stream, max_tokens=200, **thinking
    )
    assert heard.content is not None
    assert msgspec.json.decode(heard.content) == msgspec.json.decode(RECORD)
    assert heard.content.strip() == heard.content
    assert heard.finish == "stop"
    assert (heard.reasoning is None) is bool(thinking)


@pytest.mark.parametrize(
    "form",
    [
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"regex": "(yes|no)"}},
        {"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}},
    ],
    ids=["choice", "regex", "grammar"],
)
@pytest.mark.parametrize("thinking", [{}, OFF], ids=["thinking", "not thinking"])
async def test_other_forms_are_held_too(
    model: Any, form: dict[str, Any], thinking: dict[str, Any]
) -> None:
    heard = await hear(model, "Which port does the gateway use?", **form, **thinking)
    assert heard.content in {"yes", "no"}
    assert (heard.reasoning is None) is bool(thinking)


async def test_a_schema_that_cannot_be_held_is_refused(model: Any) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = await model.chat("Hello", response_format=form)
    assert answer.status == 400
    assert "not supported" in answer.json["error"]["message"]


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SAID = {"messages": [{"role": "user", "content": RECORD_OF}]}
# No texts, which may have blanks in them.
FLAGS = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "flags", "schema": FLAGS}}
FLAGGED = [{"type": "function", "function": {"name": "flag", "parameters": FLAGS}}]
ONLY = {"type": "function", "function": {"name": "flag"}}
HELD: dict[str, tuple[str, dict[str, Any]]] = {
    "json_schema": (CHAT, {**SAID, "response_format": FORM}),
    "json": (CHAT, {**SAID, "structured_outputs": {"json": FLAGS}}),
    "required": (CHAT, {**SAID, "tools": FLAGGED, "tool_choice": "required"}),
    "named": (CHAT, {**SAID, "tools": FLAGGED, "tool_choice": ONLY}),
    "a completion's schema": (COMPLETIONS, {"prompt": RECORD_OF, "response_format": FORM}),
    "a completion's json": (COMPLETIONS, {"prompt": "a", "structured_outputs": {"json": FLAGS}}),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "fields"), HELD.values(), ids=HELD.keys())
async def test_white_space_ends_in_a_form(
    model: Any, path: str, fields: dict[str, Any], stream: bool
) -> None:
    blanks = {str(token): 100 for token in await blank_tokens(model)}
    asked = {"model": "helexa/demo", "temperature": 0, "logit_bias": blanks, "max_tokens": 300}
    off = OFF if path == CHAT else {}
    answer = await model.post(path, {**asked, **fields, **off, "stream": stream})
    assert answer.status == 200, answer.body
    choices = [
        choice
        for chunk in (model.read_stream(answer) if stream else [answer.json])
        for choice in chunk["choices"]
    ]
    assert choices[-1]["finish_reason"] in {"stop", "tool_calls"}


@pytest.mark.parametrize("stream", [False, True])
async def test_no_white_space_comes_before_the_first_key(model: Any, stream: bool) -> None:
    blanks = {str(token): 100 for token in await blank_tokens(model)}
    form = {"type": "json_object"}
    heard = await hear(
        model,
        RECORD_OF,
        response_format=form,
        logit_bias=blanks,
        stream=stream,
        max_tokens=9,
        **OFF,
    )
    assert heard.content is not None
    assert heard.content.startswith('{"')


async def blank_tokens(model: Any) -> list[int]:
    found = await model.post("/tokenize", {"prompt": " \n\n\n  ", "add_special_tokens": False})
    return list(found.json["tokens"])


async def test_choices_are_taken_apart_each_for_itself(model: Any) -> None:
    answer = await model.chat(ASKED, tools=TOOLS, n=2, temperature=0.01, seed=1)
    first, second = answer.json["choices"]
    for choice in (first, second):
        (call,) = choice["message"]["tool_calls"]
        assert msgspec.json.decode(call["function"]["arguments"]) == {"city": "Paris"}
        assert choice["message"]["reasoning_content"]
    assert first["message"]["tool_calls"][0]["id"] != second["message"]["tool_calls"][0]["id"]


async def test_logprobs_of_a_stream_cover_every_token(model: Any) -> None:
    fields = {"logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}}
    chunks = model.read_stream(await model.chat("Hello", stream=True, **fields))
    *said, usage = chunks
    tokens = [
        token
        for chunk in said
        for token in (chunk["choices"][0].get("logprobs") or {"content": []})["content"]
    ]
    assert len(tokens) == usage["usage"]["completion_tokens"]
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)


async def test_a_stop_word_in_a_stream_ends_it_without_the_word(model: Any) -> None:
    heard = await hear(model, "Which port does the gateway use?", stop=["port 3"], stream=True)
    assert heard.content == "The gateway listens on "
    assert heard.reasoning == "This is a question about cortex. My script has the answer."


async def test_seeded_long_prompts_side_by_side_do_not_kill_the_engine(model: Any) -> None:
    asked = [
        model.chat(f"{word} " * 1400, temperature=1, seed=3, max_tokens=3, stream=True)
        for word in ("hello", "port", "gateway", "weather")
    ]
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 4
    assert not model.engine.activity().waiting


async def test_a_conversation_is_tokenized_as_it_would_be_asked(model: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    count = (await model.post("/tokenize", {"messages": messages})).json["count"]
    assert count == (await model.chat("Hello", max_tokens=1)).json["usage"]["prompt_tokens"]


async def hear_responses(model: Any, **fields: Any) -> list[Any]:
    """The output of an answer of the Responses API."""
    asked = {"temperature": 0, "store": False, **fields}
    answer = await model.post("/v1/responses", asked)
    assert answer.status == 200, answer.body
    if not fields.get("stream"):
        return list(answer.json["output"])
    events = answer.body.decode().split("\n\n")
    (done,) = [event for event in events if event.startswith("event: response.completed")]
    return list(msgspec.json.decode(done.partition("data: ")[2])["response"]["output"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_the_responses_api_makes_calls(model: Any, choice: str, stream: bool) -> None:
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    output = await hear_responses(
        model, input=ASKED, tools=tools, tool_choice=choice, stream=stream
    )
    calls = [item for item in output if item["type"] == "function_call"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"]
    assert calls[0]["name"] == "get_weather"
    assert msgspec.json.decode(calls[0]["arguments"]) == {"city": "Paris"}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_responses_api_holds_to_a_schema(model: Any, stream: bool) -> None:
    form = {"type": "json_schema", "name": "record", "schema": SCHEMA}
    output = await hear_responses(model, input=RECORD_OF, text={"format": form}, stream=stream)
    assert [item["type"] for item in output] == ["reasoning", "message"]
    assert output[1]["content"][0]["text"] == RECORD
