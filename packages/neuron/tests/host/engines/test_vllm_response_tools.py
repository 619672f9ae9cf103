# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools of the Responses API, and the choice among them: what vLLM gets, and what is named as left out."""

from typing import Any

import pytest

from neuron.host.engines.vllm_response_tools import plan_tools

F = {"type": "function", "name": "f"}
C = {"type": "custom", "name": "c"}
SEARCH = {"type": "web_search"}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: A"}
G_ALLOWED = {
    "type": "allowed_tools",
    "mode": "required",
    "tools": [{"type": "function", "name": "g"}],
}
SEARCH_ALLOWED = {"type": "allowed_tools", "tools": [SEARCH]}
G = {**F, "name": "g"}


@pytest.mark.parametrize(
    ("fields", "planned", "dropped"),
    [
        ({}, {}, []),
        ({"tools": None, "tool_choice": None}, {}, []),
        ({"tools": 3, "tool_choice": 4}, {"tool_choice": 4}, []),
        ({"tools": [F, SEARCH, C, {"type": ["odd"]}, "odd"]}, {"tools": [F, C, {"type": ["odd"]}, "odd"]}, ["tools.web_search"]),
        ({"tools": [{**C, "format": GRAMMAR}, F]}, {"tools": [C, F]}, ["tools.custom.format"]),
        ({"tools": [{**C, "format": {"type": "text"}}]}, {"tools": [{**C, "format": {"type": "text"}}]}, []),
        ({"tools": [{**C, "format": None}]}, {"tools": [{**C, "format": None}]}, []),
        ({"tools": [SEARCH], "tool_choice": SEARCH}, {"tools": []}, ["tools.web_search", "tool_choice"]),
        ({"tools": [F], "tool_choice": SEARCH}, {"tools": [F]}, ["tool_choice"]),
        ({"tool_choice": SEARCH}, {}, ["tool_choice"]),
        ({"tools": [SEARCH], "tool_choice": "required"}, {"tools": []}, ["tools.web_search", "tool_choice"]),
        ({"tools": [SEARCH], "tool_choice": "auto"}, {"tools": [], "tool_choice": "auto"}, ["tools.web_search"]),
        ({"tools": [], "tool_choice": "required"}, {"tools": [], "tool_choice": "required"}, []),
        ({"tools": [F], "tool_choice": F}, {"tools": [F], "tool_choice": F}, []),
        ({"tools": [F], "tool_choice": {"type": 3}}, {"tools": [F], "tool_choice": {"type": 3}}, []),
        ({"tools": [F, G], "tool_choice": G_ALLOWED}, {"tools": [G], "tool_choice": "required"}, []),
        ({"tools": [F], "tool_choice": G_ALLOWED}, {"tools": [F]}, ["tool_choice"]),
        ({"tools": [F, {"name": ["odd"]}], "tool_choice": SEARCH_ALLOWED}, {"tools": [F, {"name": ["odd"]}]}, ["tool_choice"]),
        ({"tools": [G], "tool_choice": {**G_ALLOWED, "mode": None}}, {"tools": [G], "tool_choice": "auto"}, []),
    ],
)  # fmt: skip
def test_what_only_other_servers_can_do_is_left_out(
    fields: dict[str, Any], planned: dict[str, Any], dropped: list[str]
) -> None:
    assert plan_tools(fields) == (planned, dropped)
