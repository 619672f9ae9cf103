# SPDX-License-Identifier: GPL-3.0-or-later
"""The forms that an answer can be held to, as structural tags of xgrammar's. Pure."""

from collections.abc import Mapping
from typing import Any

from neuron.host.engines.vllm_reasoning import Pair, Start

Form = dict[str, Any]

# Characters of white space in a row. Some models would write it until their tokens are spent; a reader's indents fit.
MAX_WHITE_SPACE = 20


def allow_reasoning(pair: Pair, start: Start, form: Form) -> Form:
    """A form before which the model thinks, where it does: one that it was told not to does not get round the form so."""
    if start is Start.CLOSED:
        return form
    thought = {"type": "any_tokens", "exclude_tokens": []}
    opener, closer = ({"type": "token", "token": t} for t in (pair.opener_id, pair.closer_id))
    # Models end reasoning so, and write worse when they may not.
    gap = {"type": "optional", "content": {"type": "const_string", "value": "\n\n"}}
    if start is Start.OPEN:
        end = {"type": "tag", "begin": "", "content": thought, "end": closer}
        return {"type": "sequence", "elements": [end, gap, form]}
    block = {"type": "tag", "begin": opener, "content": thought, "end": closer}
    first = {"type": "sequence", "elements": [block, gap]}
    return {"type": "sequence", "elements": [{"type": "optional", "content": first}, form]}


def bound_white_space(form: Form) -> Form:
    """A form whose JSON has only so much white space, wherever JSON stands in it. It is changed in place."""
    inner: list[Any] = [form]
    while inner:
        part = inner.pop()
        if isinstance(part, dict):
            if part.get("type") == "json_schema" and part.get("style", "json") == "json":
                part["max_whitespace_cnt"] = part.get("max_whitespace_cnt") or MAX_WHITE_SPACE
            else:
                inner += part.values()
        elif isinstance(part, list | tuple):
            inner += part
    return form


def write_calls(tools: Mapping[str, Any], opener: int, separator: int, *, several: bool) -> Form:
    """Tool calls written as a token, the name, a token and the arguments.

    Args:
        tools: name to JSON schema of the arguments; None: any object.
        opener: the token before a name.
        separator: the token after it.
        several: more than one call may be made.
    """
    calls = [
        {
            "type": "sequence",
            "elements": [
                {"type": "token", "token": opener},
                {"type": "const_string", "value": name},
                {"type": "token", "token": separator},
                {"type": "json_schema", "json_schema": schema or {"type": "object"}},
            ],
        }
        for name, schema in tools.items()
    ]
    one = {"type": "or", "elements": calls}
    return bound_white_space({"type": "plus", "content": one} if several else one)
