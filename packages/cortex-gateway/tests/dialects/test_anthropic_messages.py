# SPDX-License-Identifier: GPL-3.0-or-later
import msgspec
import pytest

from cortex_core import sse
from cortex_core.errors import EngineDiedError, UpstreamProtocolError
from cortex_gateway.dialects.anthropic_messages import AnthropicMessages
from cortex_gateway.dialects.dialect import Dialect, Translator
from cortex_gateway.usage import Meter

MESSAGES = AnthropicMessages()
DIALECT: Dialect = MESSAGES
BODY = msgspec.json.encode(
    {
        "model": "alias",
        "max_tokens": 5,
        "stream": True,
        "service_tier": "auto",
        "system": "x-anthropic-billing-header: a\nS",
        "messages": [{"role": "user", "content": "hi"}],
    }
)
SAID = sse.write_data(b'{"id":"chatcmpl-1","choices":[{"delta":{"content":"a"}}]}')
STOP = sse.write_data(b'{"choices":[{"delta":{},"finish_reason":"stop"}]}')
USAGE = sse.write_data(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}')


def opened() -> tuple[Meter, Translator]:
    meter = DIALECT.meter("node-1", lambda: 1.0)
    return meter, DIALECT.translate(meter, "req_1", MESSAGES.read(BODY))


def test_a_request_is_read_once_and_asks_for_the_concrete_model() -> None:
    asked = MESSAGES.read(BODY)
    assert (asked.model, asked.stream) == ("alias", True)
    assert (asked.dropped, asked.hygiene) == (["service_tier"], ["claude_code_billing_header"])
    for written in (
        DIALECT.write(b"", asked, "org/m"),
        DIALECT.write(BODY, DIALECT.read(BODY), "org/m"),
    ):
        chat = msgspec.json.decode(written)
        assert chat["model"] == "org/m"
        assert chat["messages"][0] == {"role": "system", "content": "S"}
    assert DIALECT.write(b"", asked, "alias") == asked.body


def test_rules_can_be_switched_off() -> None:
    asked = AnthropicMessages(rules=frozenset()).read(BODY)
    assert b"billing" in asked.body
    assert asked.hygiene == []


def test_what_is_translated_is_metered() -> None:
    meter, translator = opened()
    out = translator.feed(SAID + STOP + USAGE + sse.DONE) + translator.close()
    assert out.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert (meter.completion_tokens, meter.first_s) == (1, 1.0)
    assert meter.usage is not None
    assert meter.usage.prompt_tokens == 3


def test_a_whole_answer_is_metered_too() -> None:
    meter, translator = opened()
    body = msgspec.json.encode(
        {
            "choices": [{"message": {"content": "a"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1},
        }
    )
    assert msgspec.json.decode(translator.whole(200, body)[1])["content"][0]["text"] == "a"
    assert meter.completion_tokens == 1


def test_an_upstream_that_breaks_off_is_noted_and_told() -> None:
    meter, translator = opened()
    assert b"text_delta" in translator.feed(SAID)
    with pytest.raises(UpstreamProtocolError):
        translator.close()
    out = translator.fail(EngineDiedError(model="m", reason="killed"))
    assert out.startswith(b"event: error\n")
    assert b"[DONE]" not in out
    assert meter.error_code == "engine_died"
