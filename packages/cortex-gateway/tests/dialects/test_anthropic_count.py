# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import msgspec
import pytest

from cortex_core.errors import EngineDiedError, UpstreamProtocolError
from cortex_gateway.dialects.anthropic_count import AnthropicCount, Counted
from cortex_gateway.dialects.anthropic_messages import AnthropicMessages
from cortex_gateway.dialects.dialect import Dialect

COUNT = AnthropicCount()
DIALECT: Dialect = COUNT
FIELDS: Any = {
    "model": "alias",
    "system": "x-anthropic-billing-header: a\nS",
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [{"name": "f", "input_schema": {"type": "object"}}, {"type": "bash_20250124", "name": "b"}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
}  # fmt: skip


def opened() -> Counted:
    return Counted("node-1", "req_1")


def test_the_prompt_is_the_one_a_message_sends() -> None:
    body = msgspec.json.encode(FIELDS)
    asked = DIALECT.read(body)
    counted = msgspec.json.decode(DIALECT.write(body, asked, "org/m"))
    sent = msgspec.json.encode({**FIELDS, "max_tokens": 5})
    message = msgspec.json.decode(AnthropicMessages().read(sent).body)
    assert counted == {
        "model": "org/m",
        "messages": message["messages"],
        "tools": message["tools"],
        "chat_template_kwargs": {"enable_thinking": True},
    }
    assert DIALECT.notes(asked).dropped == ["thinking.budget_tokens", "tools.bash_20250124"]
    assert DIALECT.notes(asked).hygiene == ["claude_code_billing_header"]


def test_an_answer_begun_for_the_model_is_counted_open() -> None:
    begun = [*FIELDS["messages"], {"role": "assistant", "content": "I"}]
    asked = COUNT.read(msgspec.json.encode({"model": "m", "messages": begun}))
    counted = msgspec.json.decode(asked.body)
    assert (counted["continue_final_message"], counted["add_generation_prompt"]) == (True, False)


def test_tokens_become_their_number() -> None:
    answer = b'{"count": 3, "max_model_len": 9, "tokens": [1, 2, 3], "token_strs": null}'
    assert opened().whole(200, answer) == (200, b'{"input_tokens":3}')


def test_an_error_has_anthropics_envelope() -> None:
    told = b'{"error": {"message": "later", "code": "queue_full"}}'
    status, body = opened().whole(503, told)
    answer = msgspec.json.decode(body)
    assert (status, answer["error"]["type"], answer["request_id"]) == (
        529,
        "overloaded_error",
        "req_1",
    )


@pytest.mark.parametrize("body", [b"{}", b"[]", b"none", b"\xff", b'{"count": "3"}'])
def test_an_answer_without_a_count_is_the_upstreams_fault(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        opened().whole(200, body)


def test_a_stream_is_no_answer() -> None:
    counted = opened()
    with pytest.raises(UpstreamProtocolError):
        counted.feed(b"data: {}\n\n")
    with pytest.raises(UpstreamProtocolError):
        counted.close()
    assert b'"type":"error"' in counted.fail(EngineDiedError(model="m", reason="r"))
