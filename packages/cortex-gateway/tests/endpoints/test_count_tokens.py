# SPDX-License-Identifier: GPL-3.0-or-later
"""POST /v1/messages/count_tokens through the gateway: asked of a node that has the model, and loading nothing."""

import json
from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.node import ModelActivity
from cortex_core.testing import make_state

PATH = "/v1/messages/count_tokens"
JSON = [(b"content-type", b"application/json")]
TOKENS = b'{"count": 11, "max_model_len": 99, "tokens": [], "token_strs": null}'
ECHO = [Model(id="m", harness="echo")]


async def count(fleet: Any, model: str = "m") -> Any:
    asked = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return await fleet.ask(path=PATH, body=json.dumps(asked).encode())


def answering(fake: Any, *states: Any) -> Any:
    neuron = fake(*states)
    neuron.answer = lambda n: (200, JSON, [TOKENS])
    return neuron


async def test_the_models_own_tokenizer_is_asked(fake: Any, start: Any) -> None:
    neuron = answering(fake, make_state("m"))
    async with start(neuron, aliases={"claude": "m"}) as fleet:
        answer = await count(fleet, "claude")
    assert (answer.status, answer.json) == (200, {"input_tokens": 11})
    ((path, _, got),) = neuron.asked
    assert (path, got["model"], got["messages"]) == (
        "/tokenize",
        "m",
        [{"role": "user", "content": "hi"}],
    )


@pytest.mark.parametrize("states", [[], [make_state("m", status="loading")]])
async def test_nothing_is_loaded_and_nobody_waits(fake: Any, start: Any, states: Any) -> None:
    neuron = answering(fake, *states)
    async with start(neuron, models=ECHO) as fleet:
        answer = await count(fleet)
    assert neuron.loads == []
    assert (answer.status, answer.json["error"]["code"]) == (529, "model_loading")
    assert answer.json["error"]["type"] == "overloaded_error"
    assert answer.header(b"retry-after") == b"5"


async def test_a_full_replica_is_asked_rather_than_another_loaded(fake: Any, start: Any) -> None:
    full, other = answering(fake, make_state("m")), answering(fake)
    full.activities = [
        ModelActivity(id="m", status="loaded", running=1, max_running=1, max_waiting=0)
    ]
    async with start(full, other, models=ECHO) as fleet:
        answer = await count(fleet)
    assert answer.json == {"input_tokens": 11}
    assert (other.loads, len(full.asked)) == ([], 1)


async def test_an_unknown_model_is_told_in_anthropics_envelope(fake: Any, start: Any) -> None:
    async with start(answering(fake)) as fleet:
        answer = await count(fleet, "nobody/knows")
    assert (answer.status, answer.json["error"]["type"]) == (404, "not_found_error")
