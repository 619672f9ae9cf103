# SPDX-License-Identifier: GPL-3.0-or-later
import msgspec

from cortex_core import sse
from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.openai_responses import OPENAI_RESPONSES
from cortex_gateway.dialects.responses_chat import ResponsesByChat

DIALECT: Dialect = ResponsesByChat()
BODY = b'{"model":"alias","input":"hi","stream":true,"include":["x"],"instructions":"S"}'
SAID = sse.write_data(b'{"id":"1","choices":[{"delta":{"content":"a"}}]}')
STOP = sse.write_data(b'{"choices":[{"delta":{},"finish_reason":"stop"}]}')
USAGE = sse.write_data(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}')


def test_it_is_what_to_go_by_where_there_are_no_responses() -> None:
    assert OPENAI_RESPONSES.without_route is not None
    assert OPENAI_RESPONSES.without_route.path == OPENAI_RESPONSES.path == DIALECT.path
    assert DIALECT.without_route is None


def test_a_request_asks_for_the_concrete_model() -> None:
    asked = DIALECT.read(BODY)
    assert (asked.model, asked.stream) == ("alias", True)
    chat = msgspec.json.decode(DIALECT.write(BODY, asked, "org/m"))
    assert chat["model"] == "org/m"
    assert [turn["role"] for turn in chat["messages"]] == ["system", "user"]
    assert list(DIALECT.notes(asked).dropped) == ["include"]


def test_what_is_translated_is_metered_and_tells_the_request_again() -> None:
    meter = DIALECT.meter("node-1", lambda: 1.0)
    translator = DIALECT.translate(meter, "req_1", DIALECT.read(BODY))
    out = translator.feed(SAID + STOP + USAGE + sse.DONE) + translator.close()
    last = msgspec.json.decode(out.split(b"data: ")[-1])["response"]
    assert (last["instructions"], last["model"], last["status"]) == ("S", "alias", "completed")
    assert (meter.completion_tokens, meter.prompt_tokens, meter.first_s) == (1, 3, 1.0)
