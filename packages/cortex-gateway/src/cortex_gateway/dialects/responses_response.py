# SPDX-License-Identifier: GPL-3.0-or-later
"""How a whole answer of OpenAI chat is told in OpenAI's Responses. Errors have one envelope in both. Pure."""

from typing import Any

import msgspec

from cortex_gateway.dialects.chat_parts import Said, read_answer
from cortex_gateway.dialects.responses_parts import (
    call_id,
    is_cut,
    plain_id,
    whole_arguments,
    write_call,
    write_end,
    write_item,
    write_part,
    write_shell,
)

_ENCODE = msgspec.json.Encoder()


def write_response(
    body: bytes, upstream: str, request_id: str, told: dict[str, Any], model: str
) -> bytes:
    """A whole answer of `upstream`, translated.

    Args:
        body: its answer.
        upstream: who answered, for errors.
        request_id: names the response where the answer has no id of its own.
        told: the request's fields that the answer tells again.
        model: what it is called where the answer names none.

    Raises:
        UpstreamProtocolError: it is no answer, or ended in a way that is no regular end.
    """
    answer = read_answer(body, upstream)
    own_id = plain_id(answer.id or request_id)
    stop = answer.choices[0].stop
    output = _write_output(answer.said, own_id)
    if output and is_cut(stop):
        output[-1]["status"] = "incomplete"
    shell = write_shell(told, own_id, answer.model or model, answer.created)
    return _ENCODE.encode({**shell, **write_end(stop, output, answer.cost)})


def _write_output(said: Said, own_id: str) -> list[dict[str, Any]]:
    texts = {
        "reasoning_text": said.reasoning_content or said.reasoning,
        "output_text": said.content,
        "refusal": said.refusal,
    }
    output: list[dict[str, Any]] = []
    for kind, text in texts.items():
        if text:
            part = write_part(kind, text)
            output.append(write_item(own_id, len(output), part, kind, "completed"))
    for number, call in enumerate(said.tool_calls or ()):
        named = call_id(call.id, own_id, number), call.function.name or ""
        given = whole_arguments(call.function.text)
        output.append(write_call(own_id, len(output), *named, given, "completed"))
    return output
