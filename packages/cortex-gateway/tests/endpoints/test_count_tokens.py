# SPDX-License-Identifier: GPL-3.0-or-later
"""POST /v1/messages/count_tokens through the gateway: asked of a node that has the model, and loading nothing."""

import asyncio
import json
from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.control import ModelSpec
from cortex_core.errors import ModelNotLoadedError, VisionUnsupportedError, write_openai
from cortex_core.http.client import Client
from cortex_core.node import ModelActivity
from cortex_core.testing import Scripted, make_state, serving
from cortex_gateway.endpoints.counting import ask_each
from cortex_gateway.routing.counting import Counters
from cortex_gateway.routing.plan import Serve

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


class Counting:
    """Answers `/models/count` of a fake neuron: by default, that it has not the files."""

    def __init__(self, neuron: Any, status: int = 503, body: bytes | None = None) -> None:
        self.asked: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._told = (status, body or write_openai(ModelNotLoadedError(model="m")))
        self._otherwise = neuron

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/models/count":
            await self._otherwise(scope, receive, send)
            return
        raw = b""
        while (message := await receive())["type"] == "http.request":
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.asked.append(json.loads(raw))
        await self.gate.wait()
        status, body = self._told
        await send({"type": "http.response.start", "status": status, "headers": JSON})
        await send({"type": "http.response.body", "body": body})


async def test_a_model_that_is_not_up_is_counted_by_the_files_of_a_node(
    fake: Any, start: Any
) -> None:
    without, having = Counting(fake()), Counting(fake(), 200, TOKENS)
    async with start(without, having, models=ECHO, aliases={"claude": "m"}) as fleet:
        answer = await count(fleet, "claude")
        said = await fleet.metrics()
    assert (answer.status, answer.json) == (200, {"input_tokens": 11})
    assert (answer.header(b"x-cortex-node"), answer.header(b"x-cortex-model")) == (b"b", b"m")
    assert without.asked == having.asked
    (asked,) = having.asked
    assert asked["spec"] == {"harness": "echo", "model_id": "m"}
    assert (asked["request"]["model"], asked["request"]["messages"][0]["content"]) == ("m", "hi")
    assert any('cortex_requests_total{model="m",node="b"' in line for line in said)


REFUSED = write_openai(VisionUnsupportedError(model="m"))


async def test_what_a_node_says_of_the_request_is_the_answer(fake: Any, start: Any) -> None:
    neurons = Counting(fake(), 400, REFUSED), Counting(fake(), 200, TOKENS)
    async with start(*neurons, models=ECHO) as fleet:
        answer = await count(fleet)
    assert (answer.status, answer.json["error"]["code"]) == (400, "vision_unsupported")
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert neurons[1].asked == []


@pytest.mark.parametrize("status", [401, 404, 429, 501, 503])
async def test_where_no_node_can_count_the_model_is_not_loaded(
    fake: Any, start: Any, status: int
) -> None:
    neuron = Counting(fake(), status)
    async with start(neuron, models=ECHO) as fleet:
        answer = await count(fleet)
    assert len(neuron.asked) == 1
    assert (answer.status, answer.json["error"]["code"]) == (529, "model_loading")
    assert answer.header(b"retry-after") == b"5"


async def test_a_node_that_leaves_while_another_is_asked_is_passed_over(
    fake: Any, start: Any
) -> None:
    slow, leaving = Counting(fake()), Counting(fake(), 200, TOKENS)
    slow.gate.clear()
    async with start(slow, leaving, models=ECHO) as fleet:
        asked = asyncio.create_task(count(fleet))
        while not slow.asked:
            await asyncio.sleep(0)
        await fleet.have(a=fleet.endpoint("a"))
        while len(fleet.gateway.fleet.view().nodes) > 1:
            await asyncio.sleep(0)
        slow.gate.set()
        answer = await asked
    assert (answer.status, answer.json["error"]["code"]) == (529, "model_loading")


async def test_all_that_are_asked_have_one_time_together() -> None:
    silent = Scripted(lambda n: (200, JSON, [None]))
    places = [Serve(node=name, model="m", model_id="m", reason="") for name in "ab"]
    counters = Counters(spec=ModelSpec(model_id="m"), places=tuple(places))
    async with serving(silent) as endpoint, asyncio.timeout(5):
        client = Client(endpoint)
        clients = {"a": client, "b": client}
        assert await ask_each(clients, counters, [], lambda served: b"{}", 0.05) is None
        await client.close()
    assert len(silent.asked) == 1


async def test_a_model_whose_engine_is_lost_is_counted_all_the_same(fake: Any, start: Any) -> None:
    neuron = Counting(fake(make_state("m", status="recovering")), 200, TOKENS)
    async with start(neuron) as fleet:
        answer = await count(fleet)
    assert answer.json == {"input_tokens": 11}


async def test_other_requests_are_never_answered_by_files(fake: Any, start: Any) -> None:
    neuron = Counting(fake(make_state("m", status="recovering")), 200, TOKENS)
    async with start(neuron) as fleet:
        answer = await fleet.ask()
    assert (answer.status, neuron.asked) == (503, [])
