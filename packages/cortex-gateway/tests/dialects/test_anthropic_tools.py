# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.errors import InvalidRequestBodyError
from cortex_gateway.dialects.anthropic_tools import write_tools
from cortex_gateway.dialects.fields import Dropped

SCHEMA = {"$schema": "s", "type": "object", "properties": {"a": {"const": 1.5}}}
TOOL = {"name": "f", "description": "d", "input_schema": SCHEMA}
FUNCTION = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": SCHEMA},
}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
NAMED = {"type": "function", "function": {"name": "f"}}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "none": ({}, {}, []),
    "an empty list": ({"tools": []}, {}, []),
    "an empty list and a choice": ({"tools": [], "tool_choice": {"type": "auto"}}, {}, []),
    "a definition": ({"tools": [TOOL]}, {"tools": [FUNCTION]}, []),
    "a definition that says it is custom, without words": (
        {"tools": [{"type": "custom", "name": "f", "input_schema": SCHEMA, "strict": True}]},
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": SCHEMA, "strict": True},
                }
            ]
        },
        [],
    ),
    "what says how to send it": (
        {
            "tools": [
                {**TOOL, "eager_input_streaming": True, "defer_loading": False, "cache_control": {}}
            ]
        },
        {"tools": [FUNCTION]},
        ["cache_control", "tools.defer_loading", "tools.eager_input_streaming"],
    ),
    "a tool of Anthropic's servers": (
        {"tools": [SEARCH, TOOL], "tool_choice": {"type": "auto"}},
        {"tools": [FUNCTION], "tool_choice": "auto"},
        ["tools.web_search_20250305"],
    ),
    "only such a tool": (
        {"tools": [SEARCH], "tool_choice": {"type": "any"}},
        {},
        ["tool_choice", "tools.web_search_20250305"],
    ),
    "such a tool by name": (
        {"tools": [SEARCH, TOOL], "tool_choice": {"type": "tool", "name": "web_search"}},
        {"tools": [FUNCTION]},
        ["tool_choice", "tools.web_search_20250305"],
    ),
    "choices among no tools": (
        {"tool_choice": {"type": "none", "disable_parallel_tool_use": True}},
        {},
        ["tool_choice", "tool_choice.disable_parallel_tool_use"],
    ),
    "a name where none is looked for": (
        {"tools": [TOOL], "tool_choice": {"type": "any", "name": "f"}},
        {"tools": [FUNCTION], "tool_choice": "required"},
        ["tool_choice.name"],
    ),
    "OpenAI's own shape": ({"tools": [FUNCTION]}, {"tools": [FUNCTION]}, []),
    "any": (
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        {"tools": [FUNCTION], "tool_choice": "required"},
        [],
    ),
    "no tool now": (
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
        {"tools": [FUNCTION], "tool_choice": "none"},
        [],
    ),
    "this tool, and one at a time": (
        {
            "tools": [TOOL],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        },
        {"tools": [FUNCTION], "tool_choice": NAMED, "parallel_tool_calls": False},
        [],
    ),
    "several at a time": (
        {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": False}},
        {"tools": [FUNCTION], "tool_choice": "auto"},
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_tools_become_functions(case: str) -> None:
    fields, chat, dropped = CASES[case]
    seen = Dropped()
    assert write_tools(fields, seen) == chat
    assert seen.names == dropped


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools.0"),
        ({"tools": [TOOL, {"input_schema": SCHEMA}]}, "tools.1.name"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{**TOOL, "description": 1}]}, "tools.0.description"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequestBodyError) as caught:
        write_tools(fields, Dropped())
    assert caught.value.param == path
