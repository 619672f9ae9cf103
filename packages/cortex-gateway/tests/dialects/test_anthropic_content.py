# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.errors import InvalidRequestBodyError
from cortex_gateway.dialects.anthropic_content import read_system, write_assistant, write_user
from cortex_gateway.dialects.anthropic_fields import read_blocks
from cortex_gateway.dialects.fields import Dropped

PNG = {"type": "base64", "media_type": "image/png", "data": "aGk="}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def user(content: Any) -> tuple[list[Any], list[str]]:
    dropped = Dropped()
    return write_user(read_blocks(content, "at"), dropped), dropped.names


def assistant(content: Any) -> tuple[Any, list[str]]:
    dropped = Dropped()
    return write_assistant(read_blocks(content, "at"), dropped), dropped.names


USER_CASES: dict[str, tuple[Any, list[Any], list[str]]] = {
    "a string stays one": ("hi", [{"role": "user", "content": "hi"}], []),
    "no text at all": ("", [{"role": "user", "content": ""}], []),
    "no blocks at all": ([], [{"role": "user", "content": ""}], []),
    "a lone text is a string": ([text("hi")], [{"role": "user", "content": "hi"}], []),
    "texts stay apart": (
        [text("a"), text(""), text("b")],
        [{"role": "user", "content": [text("a"), text("b")]}],
        [],
    ),
    "a cache mark leaves no trace but its name": (
        [{**text("hi"), "cache_control": {"type": "ephemeral"}, "citations": []}],
        [{"role": "user", "content": "hi"}],
        ["cache_control"],
    ),
    "an image by its bytes": (
        [text("see"), {"type": "image", "source": PNG}],
        [{"role": "user", "content": [text("see"), PNG_PART]}],
        [],
    ),
    "an image by its address": (
        [
            {
                "type": "image",
                "source": {"type": "url", "url": "https://a/b.png"},
                "transformations": {},
            }
        ],
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}],
            }
        ],
        ["image.transformations"],
    ),
    "a document of text": (
        [
            {
                "type": "document",
                "title": "T",
                "context": "C",
                "source": {"type": "text", "media_type": "text/plain", "data": "D"},
                "citations": {"enabled": True},
            },
            text("so?"),
        ],
        [{"role": "user", "content": [text("T\n\nC\n\nD"), text("so?")]}],
        ["document.citations"],
    ),
    "a document of text in base64": (
        [
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "text/csv", "data": "YSxi"},
            }
        ],
        [{"role": "user", "content": "a,b"}],
        [],
    ),
    "a document of blocks": (
        [
            {
                "type": "document",
                "title": "T",
                "source": {
                    "type": "content",
                    "content": [text("a"), {"type": "image", "source": PNG}, {"type": "document"}],
                },
            }
        ],
        [{"role": "user", "content": [text("T\n\na"), PNG_PART]}],
        ["document.document"],
    ),
    "a document of a string": (
        [{"type": "document", "source": {"type": "content", "content": "a"}}],
        [{"role": "user", "content": "a"}],
        [],
    ),
    "a document that is a picture with a title": (
        [
            {
                "type": "document",
                "title": "T",
                "source": {"type": "content", "content": [{"type": "image", "source": PNG}]},
            }
        ],
        [{"role": "user", "content": [text("T"), PNG_PART]}],
        [],
    ),
    "a search result": (
        [{"type": "search_result", "title": "T", "source": "S", "content": [text("a"), text("b")]}],
        [{"role": "user", "content": "T\nS\n\na\nb"}],
        [],
    ),
    "a search result with a picture": (
        [
            {
                "type": "search_result",
                "title": "T",
                "source": "S",
                "content": [text("a"), {"type": "image", "source": PNG}, text("b")],
            }
        ],
        [{"role": "user", "content": [text("T\nS\n\na\nb"), PNG_PART]}],
        [],
    ),
    "an unknown block with a text": (
        [{"type": "novelty", "text": "x", "tone": "low"}],
        [{"role": "user", "content": "x"}],
        ["novelty.tone"],
    ),
    "a source that says more": (
        [{"type": "image", "source": {**PNG, "detail": "high"}}],
        [{"role": "user", "content": [PNG_PART]}],
        ["image.source.detail"],
    ),
    "an unknown block without one": (
        [text("a"), {"type": "container_upload", "file_id": "f"}],
        [{"role": "user", "content": "a"}],
        ["container_upload"],
    ),
    "a tool's result as a string": (
        [{"type": "tool_result", "tool_use_id": "c", "content": "r", "is_error": False}],
        [{"role": "tool", "tool_call_id": "c", "content": "r"}],
        [],
    ),
    "a tool's result that is nothing": (
        [{"type": "tool_result", "tool_use_id": "c"}],
        [{"role": "tool", "tool_call_id": "c", "content": ""}],
        [],
    ),
    "results go before what the user says": (
        [
            text("and now?"),
            {"type": "tool_result", "tool_use_id": "c", "content": [text("a"), text("b")]},
            {"type": "tool_result", "tool_use_id": "d", "content": "r"},
        ],
        [
            {"role": "tool", "tool_call_id": "c", "content": "a\nb"},
            {"role": "tool", "tool_call_id": "d", "content": "r"},
            {"role": "user", "content": "and now?"},
        ],
        [],
    ),
    "a result's picture goes with the rest of the turn": (
        [
            {
                "type": "tool_result",
                "tool_use_id": "c",
                "content": [
                    text("a"),
                    {"type": "image", "source": PNG},
                    {"type": "tool_reference"},
                ],
            },
            text("see"),
        ],
        [
            {"role": "tool", "tool_call_id": "c", "content": "a"},
            {"role": "user", "content": [PNG_PART, text("see")]},
        ],
        ["tool_reference"],
    ),
    "a failed tool": (
        [{"type": "tool_result", "tool_use_id": "c", "content": "no such file", "is_error": True}],
        [{"role": "tool", "tool_call_id": "c", "content": "Error: no such file"}],
        [],
    ),
    "a failed tool that says so itself": (
        [{"type": "tool_result", "tool_use_id": "c", "content": "Error: no", "is_error": True}],
        [{"role": "tool", "tool_call_id": "c", "content": "Error: no"}],
        [],
    ),
    "a failed tool that says nothing": (
        [{"type": "tool_result", "tool_use_id": "c", "is_error": True, "toolset_name": "x"}],
        [{"role": "tool", "tool_call_id": "c", "content": "Error:"}],
        ["tool_result.toolset_name"],
    ),
}


@pytest.mark.parametrize("case", USER_CASES)
def test_a_turn_of_the_user_becomes_these_messages(case: str) -> None:
    content, messages, dropped = USER_CASES[case]
    assert user(content) == (messages, dropped)


CALL = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": [1, 2.5], "b": "ü"}}
CALL_OUT = {
    "id": "c",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a":[1,2.5],"b":"ü"}'},
}

ASSISTANT_CASES: dict[str, tuple[Any, Any, list[str]]] = {
    "a string": ("hi", {"role": "assistant", "content": "hi"}, []),
    "nothing": ([], {"role": "assistant", "content": ""}, []),
    "texts as they were generated": (
        [text("a"), text("b")],
        {"role": "assistant", "content": "ab"},
        [],
    ),
    "a call alone": ([CALL], {"role": "assistant", "content": None, "tool_calls": [CALL_OUT]}, []),
    "several calls and a text": (
        [
            text("let me see"),
            CALL,
            {**CALL, "id": "d", "input": None, "caller": {"type": "direct"}},
        ],
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [
                CALL_OUT,
                {"id": "d", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        [],
    ),
    "thinking, whoever signed it": (
        [{"type": "thinking", "thinking": "hm", "signature": "x"}, text("a")],
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
        [],
    ),
    "thinking that cannot be read": (
        [{"type": "redacted_thinking", "data": "x"}, text("a")],
        {"role": "assistant", "content": "a"},
        ["redacted_thinking"],
    ),
    "what servers ran": (
        [{"type": "server_tool_use", "id": "s"}, {"type": "web_search_tool_result"}, text("a")],
        {"role": "assistant", "content": "a"},
        ["server_tool_use", "web_search_tool_result"],
    ),
    "a picture": (
        [text("a"), {"type": "image", "source": PNG}],
        {"role": "assistant", "content": "a"},
        ["assistant.image"],
    ),
    "a search result with one": (
        [
            {
                "type": "search_result",
                "title": "T",
                "source": "S",
                "content": [text("a"), {"type": "image", "source": PNG}],
            }
        ],
        {"role": "assistant", "content": "T\nS\n\na"},
        ["assistant.image"],
    ),
    "a call of another caller": (
        [{**CALL, "caller": {"type": "code_execution_20250825", "tool_id": "t"}}],
        {"role": "assistant", "content": None, "tool_calls": [CALL_OUT]},
        ["tool_use.caller"],
    ),
    "our own answer, replayed": (
        [{**text("a"), "citations": []}, {**CALL, "caller": {"type": "direct"}}],
        {"role": "assistant", "content": "a", "tool_calls": [CALL_OUT]},
        [],
    ),
}


@pytest.mark.parametrize("case", ASSISTANT_CASES)
def test_a_turn_of_the_model_becomes_this_message(case: str) -> None:
    content, message, dropped = ASSISTANT_CASES[case]
    assert assistant(content) == (message, dropped)


def test_a_system_prompt_is_its_texts() -> None:
    dropped = Dropped()
    blocks = read_blocks([text("a"), {"type": "image", "source": PNG}, text("b")], "system")
    assert read_system(blocks, dropped) == ["a", "b"]
    assert dropped.names == ["system.image"]


PDF = {"type": "base64", "media_type": "application/pdf", "data": "aGk="}
WRONG_USER: dict[str, tuple[Any, str, str]] = {
    "a number": (5, "at", "`at` must be an array"),
    "nothing": (None, "at", "`at` is missing"),
    "a block that is a string": (["hi"], "at.0", "`at.0` must be an object"),
    "a block without type": ([{"text": "a"}], "at.0.type", "`at.0.type` is missing"),
    "a text without text": ([{"type": "text"}], "at.0.text", "`at.0.text` is missing"),
    "a call": ([CALL], "at.0", "is a `tool_use` block, which a turn of user cannot hold"),
    "an image without source": ([{"type": "image"}], "at.0.source", "is missing"),
    "an image by a file's id": (
        [{"type": "image", "source": {"type": "file", "file_id": "f"}}],
        "at.0.source",
        "is of type `file`; images are read as `base64` or `url` only",
    ),
    "an image without bytes": (
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png"}}],
        "at.0.source.data",
        "is missing",
    ),
    "a PDF": (
        [text("a"), {"type": "document", "source": PDF}],
        "at.1.source",
        "is of type `base64` (application/pdf), which cannot be read here",
    ),
    "a PDF by its address": (
        [{"type": "document", "source": {"type": "url", "url": "https://a"}}],
        "at.0.source",
        "is of type `url`, which cannot be read here",
    ),
    "a document that is no text": (
        [
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "text/plain", "data": "_"},
            }
        ],
        "at.0.source.data",
        "is not the base64 of a text in UTF-8",
    ),
    "a result without id": ([{"type": "tool_result"}], "at.0.tool_use_id", "is missing"),
    "a result that may have failed": (
        [{"type": "tool_result", "tool_use_id": "c", "is_error": "no"}],
        "at.0.is_error",
        "must be true or false",
    ),
    "a result in a result": (
        [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "tool_result"}]}],
        "at.0.content.0",
        "is a `tool_result` block",
    ),
}


@pytest.mark.parametrize("case", WRONG_USER)
def test_a_wrong_block_is_named(case: str) -> None:
    content, path, reason = WRONG_USER[case]
    with pytest.raises(InvalidRequestBodyError) as caught:
        user(content)
    assert caught.value.param == path
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ({"type": "tool_result", "tool_use_id": "c"}, "at.0"),
        ({"type": "tool_use", "name": "f", "input": {}}, "at.0.id"),
        ({"type": "tool_use", "id": "c", "input": {}}, "at.0.name"),
        ({"type": "tool_use", "id": "c", "name": "f", "input": "x"}, "at.0.input"),
        ({"type": "thinking"}, "at.0.thinking"),
    ],
)
def test_a_wrong_block_of_the_model_is_named(block: Any, path: str) -> None:
    with pytest.raises(InvalidRequestBodyError) as caught:
        assistant([block])
    assert caught.value.param == path
