# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.errors import InvalidRequestBodyError
from cortex_gateway.dialects.fields import Dropped
from cortex_gateway.dialects.responses_tools import read_tools, write_tools

SCHEMA = {"type": "object", "properties": {"a": {"const": 1.5}}}
F = {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": False}
G = {"type": "function", "name": "g"}
NESTED_F = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": False}}  # fmt: skip
NESTED_G = {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}
ALLOWED = {
    "type": "allowed_tools",
    "mode": "required",
    "tools": [{"type": "function", "name": "g"}],
}
NAMED = {"type": "function", "function": {"name": "f"}}


def write(fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    dropped = Dropped()
    return write_tools(fields, read_tools(fields, dropped), dropped), dropped.names


@pytest.mark.parametrize(
    ("fields", "chat", "dropped"),
    [
        ({}, {}, []),
        ({"tools": []}, {}, []),
        ({"tools": None, "tool_choice": "auto", "parallel_tool_calls": True}, {}, []),
        ({"tools": [F, G]}, {"tools": [NESTED_F, NESTED_G]}, []),
        ({"tools": [F, {"type": "web_search"}, {"type": "namespace", "tools": [G]}]}, {"tools": [NESTED_F]},
         ["tools.namespace", "tools.web_search"]),
        ({"tools": [F | {"defer_loading": True}]}, {"tools": [NESTED_F]}, ["tools.defer_loading"]),
        ({"tools": [F], "parallel_tool_calls": False}, {"tools": [NESTED_F], "parallel_tool_calls": False}, []),
        ({"tools": [F], "tool_choice": "required"}, {"tools": [NESTED_F], "tool_choice": "required"}, []),
        ({"tools": [F], "tool_choice": {"type": "function", "name": "f"}}, {"tools": [NESTED_F], "tool_choice": NAMED}, []),
        ({"tools": [F], "tool_choice": {"type": "function", "name": "h"}}, {"tools": [NESTED_F]}, ["tool_choice"]),
        ({"tools": [F], "tool_choice": {"type": "web_search"}}, {"tools": [NESTED_F]}, ["tool_choice"]),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, {}, ["tool_choice", "tools.web_search"]),
        ({"tools": [], "tool_choice": "none", "parallel_tool_calls": False}, {}, ["parallel_tool_calls", "tool_choice"]),
        ({"tools": [F], "tool_choice": {"type": "function", "name": "f", "x": 1}}, {"tools": [NESTED_F], "tool_choice": NAMED}, ["tool_choice.x"]),
        ({"tools": [F, G], "tool_choice": ALLOWED | {"x": 1}}, {"tools": [NESTED_G], "tool_choice": "required"}, ["tool_choice.x"]),
        ({"tools": [F, G], "tool_choice": ALLOWED}, {"tools": [NESTED_G], "tool_choice": "required"}, []),
        ({"tools": [F, G], "tool_choice": ALLOWED | {"tools": [G | {"x": 1}, "f"]}}, {"tools": [NESTED_G], "tool_choice": "required"},
         ["tool_choice.tools.x"]),
        ({"tools": [F], "tool_choice": ALLOWED}, {"tools": [NESTED_F]}, ["tool_choice"]),
    ],
)  # fmt: skip
def test_tools_are_nested(fields: dict[str, Any], chat: dict[str, Any], dropped: list[str]) -> None:
    assert write(fields) == (chat, dropped)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools.0"),
        ({"tools": [{"name": "f"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [F], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [F], "tool_choice": 7}, "tool_choice"),
        ({"tools": [F], "tool_choice": {}}, "tool_choice.type"),
        ({"tools": [F], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)
def test_a_mistake_is_named_by_its_path(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestBodyError) as caught:
        write(fields)
    assert caught.value.param == param
