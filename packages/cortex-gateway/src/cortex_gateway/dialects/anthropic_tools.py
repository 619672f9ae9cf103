# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tools a request of Anthropic's offers, and how the model may choose among them, in OpenAI's words.

Tools that only Anthropic's own servers know how to run or describe (`web_search_…`, `bash_…`, `computer_…`)
are dropped and reported: a model here has no definition of them. Pure.
"""

from typing import Any

from cortex_gateway.dialects.fields import Dropped, invalid, optional, require

_CARRIED = ("name", "description", "input_schema", "type", "strict")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def write_tools(fields: dict[str, Any], dropped: Dropped) -> dict[str, Any]:
    """`tools`, `tool_choice` and `parallel_tool_calls` of the chat request, as far as they are called for.

    Raises:
        InvalidRequestBodyError: a definition lacks its name or schema, or the choice names no tool of the request.
    """
    offered = optional(fields.get("tools"), list, "tools") or []
    names: set[str] = set()
    tools = []
    for number, tool in enumerate(offered):
        definition = require(tool, dict, f"tools.{number}")
        if written := _write_tool(definition, f"tools.{number}", dropped):
            tools.append(written)
            names.add(written["function"]["name"])
    choice = optional(fields.get("tool_choice"), dict, "tool_choice")
    some_dropped = len(offered) > len(tools)
    chat = {} if choice is None else _write_choice(choice, names, some_dropped, dropped)
    if tools:
        return {"tools": tools, **chat}
    if chat.get("tool_choice") == "none":
        dropped.note("tool_choice")
    if "parallel_tool_calls" in chat:
        dropped.note("tool_choice", "disable_parallel_tool_use")
    return {}


def _write_tool(tool: dict[str, Any], path: str, dropped: Dropped) -> dict[str, Any] | None:
    """None: no model here could use it."""
    kind = optional(tool.get("type"), str, f"{path}.type") or "custom"
    if kind == "function" and isinstance(tool.get("function"), dict):
        require(tool["function"].get("name"), str, f"{path}.function.name")
        return tool  # OpenAI's own shape, which some clients send here
    if kind != "custom":
        dropped.note("tools", kind)
        return None
    dropped.note_rest(tool, _CARRIED, "tools")
    function: dict[str, Any] = {"name": require(tool.get("name"), str, f"{path}.name")}
    if description := optional(tool.get("description"), str, f"{path}.description"):
        function["description"] = description
    function["parameters"] = require(tool.get("input_schema"), dict, f"{path}.input_schema")
    if optional(tool.get("strict"), bool, f"{path}.strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


def _write_choice(
    choice: dict[str, Any], names: set[str], some_dropped: bool, dropped: Dropped
) -> dict[str, Any]:
    """`names` are the tools that remain; `some_dropped` others of the request do not."""
    kind = require(choice.get("type"), str, "tool_choice.type")
    carried = ["type", "disable_parallel_tool_use", *(["name"] if kind == "tool" else [])]
    dropped.note_rest(choice, carried, "tool_choice")
    chat: dict[str, Any] = {}
    if kind == "tool":
        name = require(choice.get("name"), str, "tool_choice.name")
        if name in names:
            chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind not in _CHOICES:
        raise invalid("tool_choice.type", "must be `auto`, `any`, `tool` or `none`")
    elif names or kind in ("auto", "none"):
        chat["tool_choice"] = _CHOICES[kind]
    if not chat and not some_dropped:
        raise invalid("tool_choice", "asks for a tool that `tools` does not define")
    if not chat:
        dropped.note("tool_choice")
    if optional(
        choice.get("disable_parallel_tool_use"), bool, "tool_choice.disable_parallel_tool_use"
    ):
        chat["parallel_tool_calls"] = False
    return chat
