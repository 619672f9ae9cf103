# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers call a model as the catalogue does, wherever they are cut, and whatever is said in them."""

import json
from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.errors import EngineDiedError
from cortex_core.sse import DONE
from cortex_core.testing import make_state
from cortex_gateway.dialects.openai_chat import OPENAI_CHAT
from cortex_gateway.renaming import Renamed
from cortex_gateway.usage import Meter

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream")]


def make_meter() -> Meter:
    return OPENAI_CHAT.meter("a", lambda: 0.0)


def event(model: str, *, spaced: bool = False) -> bytes:
    """It speaks of a model in its text too."""
    delta = rb'{"delta":{"content":"\"model\":\"hub:org/m\""},"finish_reason":"stop"}'
    key = b'"model": ' if spaced else b'"model":'
    return b'data: {%b"%b","choices":[%b]}\n\n' % (key, model.encode(), delta)


@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_stream_is_renamed_wherever_it_is_cut(size: int, spaced: bool) -> None:
    stream = event("hub:org/m", spaced=spaced) * 2 + DONE
    renamed = Renamed(make_meter(), "hub:org/m", "org/m")
    out = b"".join(renamed.feed(stream[at : at + size]) for at in range(0, len(stream), size))
    assert out + renamed.close() == event("org/m", spaced=spaced) * 2 + DONE


def test_a_whole_answer_is_renamed_and_errors_pass() -> None:
    renamed = Renamed(make_meter(), "hub:org/m", "org/m")
    assert renamed.whole(200, b'{"model":"hub:org/m"}') == (200, b'{"model":"org/m"}')
    assert renamed.whole(200, b'{"model":"hub:org/m2"}') == (200, b'{"model":"hub:org/m2"}')
    error = EngineDiedError(model="m", node="a", reason="x")
    assert renamed.fail(error) == make_meter().fail(error)


@pytest.mark.parametrize("name", ["org/m", "hub:org/m", "fast"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_an_answer_calls_its_model_as_it_is_listed(
    fake: Any, start: Any, path: str, name: str
) -> None:
    said = {"model": "hub:org/m", "choices": [{"delta": {"content": '"model":"hub:org/m"'}}]}
    stop = {"model": "hub:org/m", "choices": [{"delta": {}, "finish_reason": "stop"}]}
    chunks = [f"data: {json.dumps(each, separators=(',', ':'))}\n\n" for each in (said, stop)]
    raw = "".join(chunks).encode() + DONE
    neuron = fake(make_state("hub:org/m"))
    neuron.answer = lambda n: (200, SSE, [raw[:20], raw[20:]])
    if path == "/v1/responses":
        neuron.answer = lambda n: (404, JSON, [b"{}"]) if n == 0 else (200, SSE, [raw])
    models = [Model(id="org/m", harness="echo", source="hub")]
    asked = {"input": "x", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    async with start(neuron, models=models, aliases={"fast": "org/m"}) as fleet:
        answer = await fleet.ask(name, path=path, stream=True, **asked)
        neuron.answer = lambda n: (200, JSON, [b'{"model": "hub:org/m", "choices": []}'])
        whole = await fleet.ask(name)
    assert b'"model":"org/m"' in answer.body
    assert b'"model":"hub:org/m"' not in answer.body
    assert rb"\"model\":\"hub:org/m\"" in answer.body
    assert whole.body == b'{"model": "org/m", "choices": []}'
