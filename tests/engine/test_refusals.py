# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that the engine must refuse, each with its code, the field at fault, and what is said of it."""

from typing import Any

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

CASES: list[tuple[str, Any, str, str | None, str]] = [
    ("not JSON", b"{", "malformed_json", None, "is not valid JSON: Input data was truncated"),
    ("no object", b"[]", "invalid_request_body", None, "expected an object, found list"),
    ("no messages", {}, "invalid_request_body", "messages", "messages: Field required"),
    ("null for messages", {"messages": None}, "invalid_request_body", "messages", "messages: Field required"),
    ("messages of a wrong type", {"messages": "x"}, "invalid_request_body", "messages", "should be a valid list"),
    ("no message", {"messages": []}, "invalid_request_body", None, "Provide at least one message"),
    ("no role", {"messages": [{"content": "x"}]}, "invalid_request_body", "messages.0.role", "Field required"),
    (
        "content of a wrong type",
        {"messages": [{"role": "user", "content": 3}]},
        "invalid_request_body",
        "messages.0.content",
        "should be a valid string",
    ),
    (
        "a part without its text",
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "invalid_request_body",
        "content.0.text",
        "Field required",
    ),
    ("too cold", {"messages": HELLO, "temperature": -3}, "invalid_request_body", "temperature", "non-negative, got -3"),
    ("top_p", {"messages": HELLO, "top_p": 3}, "invalid_request_body", "top_p", "must be in (0, 1], got 3"),
    (
        "a word for a number",
        {"messages": HELLO, "max_tokens": "many"},
        "invalid_request_body",
        "max_tokens",
        "should be a valid integer",
    ),
    ("no tokens", {"messages": HELLO, "max_tokens": -1}, "invalid_request_body", "max_tokens", "at least 1, got -1"),
    ("stop", {"messages": HELLO, "stop": 3}, "invalid_request_body", "stop", "should be a valid string"),
    ("one stop", {"messages": HELLO, "stop": ["a", 3]}, "invalid_request_body", "stop.1", "should be a valid string"),
    ("many stops", {"messages": HELLO, "stop": ["a"] * 257}, "invalid_request_body", "stop", "at most 256 items"),
    (
        "greedy twice",
        {"messages": HELLO, "n": 2, "temperature": 0},
        "invalid_request_body",
        None,
        "n must be 1 when using greedy sampling, got 2",
    ),
    (
        "a tool without tools",
        {"messages": HELLO, "tool_choice": "required"},
        "invalid_request_body",
        "tool_choice",
        "`tools` must be set",
    ),
    (
        "a schema that is none",
        {
            "messages": HELLO,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nope"}},
            },
        },
        "invalid_request_body",
        None,
        'into a grammar: Unsupported type "nope"',
    ),
    (
        "too long",
        {"messages": [{"role": "user", "content": "hello " * 9000}]},
        "context_length_exceeded",
        None,
        "maximum context length is 4096 tokens",
    ),
    (
        "an image",
        {"messages": [{"role": "user", "content": [IMAGE]}]},
        "vision_unsupported",
        None,
        "reads text only, and the request has an image. Ask a model with the capability `vision`.",
    ),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "code", "param", "told"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
async def test_refusals(
    model: Any, asked: Any, code: str, param: str | None, told: str, stream: bool
) -> None:
    if isinstance(asked, dict):
        asked = {"model": "helexa/demo", **asked, "stream": stream}
    answer = await model.post(CHAT, asked)
    error = answer.json["error"]
    assert (answer.status, error["code"], error["param"]) == (400, code, param), error
    assert told in error["message"]
    assert answer.header(b"retry-after") is None
    assert model.engine.activity().running == 0


async def test_a_prompt_that_is_too_long_says_how_long_it_may_be(model: Any) -> None:
    for path, asked in (
        (CHAT, {"messages": [{"role": "user", "content": "hello " * 9000}]}),
        ("/v1/completions", {"prompt": "hello " * 9000}),
        ("/v1/completions", {"prompt": [0] * 5000}),
    ):
        answer = await model.post(path, {"model": "helexa/demo", **asked})
        assert answer.json["error"]["code"] == "context_length_exceeded"
        assert "maximum context length is 4096 tokens" in answer.json["error"]["message"]
