# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tools a request of OpenAI's Responses offers, and how the model may choose among them, in chat's words.

Chat knows functions only. Tools that OpenAI runs itself (`web_search`, …), and those of other kinds (`custom`,
`namespace`), are dropped and reported. Pure.
"""

from typing import Any

from cortex_gateway.dialects.fields import Dropped, invalid, optional, require

Fields = dict[str, Any]

_CARRIED = ("type", "name", "description", "parameters", "strict")
_CHOICES = ("auto", "none", "required")


def read_tools(fields: Fields, dropped: Dropped) -> list[Fields]:
    """The request's function tools, as the client wrote them.

    Raises:
        InvalidRequestBodyError: a tool lacks its type or name. The client's fault.
    """
    tools = []
    for number, tool in enumerate(optional(fields.get("tools"), list, "tools") or []):
        path = f"tools.{number}"
        kind = require(require(tool, dict, path).get("type"), str, f"{path}.type")
        if kind != "function":
            dropped.note("tools", kind)
            continue
        require(tool.get("name"), str, f"{path}.name")
        dropped.note_rest(tool, _CARRIED, "tools")
        tools.append(tool)
    return tools


def write_tools(fields: Fields, tools: list[Fields], dropped: Dropped) -> Fields:
    """`tools`, `tool_choice` and `parallel_tool_calls` of the chat request, as far as they are called for.

    `tools` are those that `read_tools` found.
    """
    chat: Fields = {"tools": [_write_tool(tool) for tool in tools]} if tools else {}
    if (choice := fields.get("tool_choice")) is not None:
        chat |= _write_choice(choice, chat.get("tools", []), dropped)
    parallel = optional(fields.get("parallel_tool_calls"), bool, "parallel_tool_calls")
    if tools and parallel is not None:
        chat["parallel_tool_calls"] = parallel
    elif parallel is False:
        dropped.note("parallel_tool_calls")
    return chat


def _write_tool(tool: Fields) -> Fields:
    named = {name: tool[name] for name in _CARRIED[1:] if tool.get(name) is not None}
    return {"type": "function", "function": {"parameters": {"type": "object"}, **named}}


def _write_choice(choice: object, tools: list[Fields], dropped: Dropped) -> Fields:
    """Without any tool left, a choice says nothing any more, and upstreams refuse it."""
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise invalid("tool_choice", f"must be one of {', '.join(_CHOICES)}, or an object")
        if not tools and choice != "auto":
            dropped.note("tool_choice")
        return {"tool_choice": choice} if tools else {}
    wanted = require(choice, dict, "tool_choice")
    kind = require(wanted.get("type"), str, "tool_choice.type")
    if kind == "allowed_tools":
        return _write_allowed(wanted, tools, dropped)
    name = wanted.get("name")
    if kind == "function" and name in _names(tools):
        dropped.note_rest(wanted, ("type", "name"), "tool_choice")
        return {"tool_choice": {"type": "function", "function": {"name": name}}}
    dropped.note("tool_choice")
    return {}


def _write_allowed(wanted: Fields, tools: list[Fields], dropped: Dropped) -> Fields:
    """Some of the tools: the others are not offered, which every upstream understands."""
    given = optional(wanted.get("tools"), list, "tool_choice.tools") or []
    listed = [tool for tool in given if isinstance(tool, dict)]
    names = {tool.get("name") for tool in listed}
    allowed = [tool for tool in tools if tool["function"]["name"] in names]
    if not allowed:
        dropped.note("tool_choice")
        return {}
    dropped.note_rest(wanted, ("type", "mode", "tools"), "tool_choice")
    for tool in listed:
        dropped.note_rest(tool, ("type", "name"), "tool_choice", "tools")
    mode = optional(wanted.get("mode"), str, "tool_choice.mode") or "auto"
    return {"tools": allowed, **_write_choice(mode, allowed, dropped)}


def _names(tools: list[Fields]) -> set[str]:
    return {tool["function"]["name"] for tool in tools}
