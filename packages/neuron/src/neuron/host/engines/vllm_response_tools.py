# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tools a request of OpenAI's Responses offers, and how the model may choose among them, as vLLM takes it. Pure."""

from typing import Any

from neuron.host.engines.vllm_asked import Fields, write_name

# Tools that the client runs. Others run on OpenAI's own servers.
_TOOLS = frozenset({"function", "custom", "namespace"})
_CHOICES = frozenset({"function", "custom", "allowed_tools"})


def plan_tools(fields: Fields) -> tuple[Fields, list[str]]:
    """`tools` and `tool_choice` for vLLM, as far as they are called for, and the names of what is left out of them."""
    choice, given = fields.get("tool_choice"), fields.get("tools")
    dropped: list[str] = []
    planned: Fields = {}
    if isinstance(given, list):
        planned["tools"] = [_read_tool(tool, dropped) for tool in given if _is_ours(tool, dropped)]
    tools = planned.get("tools", [])
    if _says_nothing(choice, was_offered=bool(given), tools=tools):
        dropped.append("tool_choice")
    elif isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        planned |= _plan_allowed(choice, tools, dropped)
    elif choice is not None:
        planned["tool_choice"] = choice
    return planned, dropped


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _name(tool: Any) -> str | None:
    name = tool.get("name") if isinstance(tool, dict) else None
    return name if isinstance(name, str) else None


def _is_ours(tool: Any, dropped: list[str]) -> bool:
    kind = _kind(tool)
    if kind is None or kind in _TOOLS:
        return True
    dropped.append(write_name("tools", kind))
    return False


def _read_tool(tool: Any, dropped: list[str]) -> Any:
    """A tool as vLLM takes it: a custom one without the grammar that holds what is written for it, which vLLM refuses."""
    if _kind(tool) != "custom" or _kind(tool.get("format")) in (None, "text"):
        return tool
    dropped.append("tools.custom.format")
    return {name: value for name, value in tool.items() if name != "format"}


def _says_nothing(choice: Any, *, was_offered: bool, tools: list[Any]) -> bool:
    """Whether a choice is of a tool that only other servers have, or among tools none of which is left."""
    if isinstance(choice, str):
        return was_offered and not tools and choice not in ("auto", "none")
    kind = _kind(choice)
    return kind is not None and kind not in _CHOICES


def _plan_allowed(choice: Fields, tools: list[Any], dropped: list[str]) -> Fields:
    """Some of the tools: the others are not offered. vLLM would offer them all, and have the model choose freely."""
    listed = choice.get("tools")
    names = {_name(tool) for tool in (listed if isinstance(listed, list) else ())} - {None}
    allowed = [tool for tool in tools if _name(tool) in names]
    if not allowed:
        dropped.append("tool_choice")
        return {}
    return {"tools": allowed, "tool_choice": choice.get("mode") or "auto"}
