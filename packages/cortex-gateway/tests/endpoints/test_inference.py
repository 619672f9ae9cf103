# SPDX-License-Identifier: GPL-3.0-or-later
"""A request through the gateway: what goes to the neuron, what comes back, what is refused, what is counted."""

import asyncio
import functools
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cortex_core import sse
from cortex_core.catalogue import Model
from cortex_core.errors import LoadFailedError
from cortex_core.http.client import Client
from cortex_core.node import Limits, ModelActivity
from cortex_core.testing import make_device, make_discovery, make_state, serving

ECHO = [Model(id="m", harness="echo")]
SSE = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json")]
ROLE = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
ONE = b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
COMMENT = b': usage {"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}\n\n'
M = make_state("m")


def refusal(code: str) -> bytes:
    return json.dumps({"error": {"message": "no place", "code": code, "waiting": 9}}).encode()


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


async def test_a_request_goes_to_the_neuron_as_it_is(fake: Any, start: Any) -> None:
    neuron = fake(M)
    body = b'{"model": "m",  "messages": [], "top_k": 1.50, "unknown": {"a": null}}'
    sent = [
        (b"authorization", b"Bearer mine"),
        (b"x-api-key", b"mine"),
        (b"cookie", b"a=b"),
        (b"x-cortex-usage", b"no"),
        (b"x-cortex-principal", b"somebody else"),
        (b"content-type", b"application/x-www-form-urlencoded"),
        (b"x-include-thinking", b"1"),
        (b"traceparent", b"00-1-2-3"),
        (b"x-request-id", b"req-7"),
    ]
    async with start(neuron, secrets={"a": "s3cret"}) as fleet:
        answer = await fleet.ask(body=body, headers=sent)
    ((path, headers, got),) = neuron.asked
    assert (answer.status, path, got) == (200, "/v1/chat/completions", json.loads(body))
    assert headers[b"authorization"] == b"Bearer s3cret"
    assert (headers[b"x-request-id"], headers[b"x-cortex-usage"]) == (b"req-7", b"1")
    assert (headers[b"x-include-thinking"], headers[b"traceparent"]) == (b"1", b"00-1-2-3")
    assert headers[b"content-type"] == b"application/json"
    assert not headers.keys() & {b"x-api-key", b"cookie"}
    assert headers[b"x-cortex-principal"] != b"somebody else"
    assert neuron.control_headers[0][b"authorization"] == b"Bearer s3cret"


async def test_without_a_secret_nothing_is_sent(fake: Any, start: Any) -> None:
    neuron = fake(M)
    async with start(neuron) as fleet:
        await fleet.ask()
    assert b"authorization" not in neuron.asked[0][1]


async def test_an_answer_says_where_it_came_from(fake: Any, start: Any) -> None:
    neuron = fake(M)
    neuron.answer = lambda n: (
        200,
        [*JSON, (b"x-engine", b"e"), (b"connection", b"close")],
        [b"{}"],
    )
    async with start(neuron) as fleet:
        answer = await fleet.ask(headers=[(b"x-request-id", b"req-7")])
    assert answer.body == b"{}"
    assert (answer.header(b"x-cortex-node"), answer.header(b"x-cortex-model")) == (b"a", b"m")
    assert (answer.header(b"x-cortex-decision"), answer.header(b"x-request-id")) == (
        b"serve",
        b"req-7",
    )
    assert 0 < float(answer.header(b"x-cortex-overhead-ms") or b"") < 1000
    assert answer.header(b"x-engine") == b"e"
    assert answer.header(b"connection") is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_an_alias_asks_for_the_concrete_model(fake: Any, start: Any, path: str) -> None:
    neuron = fake(make_state("hub:org/m"))
    models = [Model(id="org/m", harness="echo", source="hub")]
    async with start(neuron, models=models, aliases={"fast": "org/m"}) as fleet:
        answer = await fleet.ask("fast", path=path)
    assert answer.header(b"x-cortex-model") == b"org/m"
    assert (neuron.asked[0][0], neuron.asked[0][2]["model"]) == (path, "hub:org/m")


async def test_a_request_without_model_asks_for_the_default(fake: Any, start: Any) -> None:
    neuron = fake(M)
    async with start(neuron, default_model="m") as fleet:
        answer = await fleet.ask(body=b'{"messages":[]}')
    assert (answer.status, neuron.asked[0][2]) == (200, {"messages": [], "model": "m"})


@pytest.mark.parametrize("name", ["claude-opus-4-8", "o1"])
async def test_a_name_that_nobody_knows_is_served_by_what_the_operator_says(
    fake: Any, start: Any, name: str
) -> None:
    neuron = fake(M)
    async with start(neuron, aliases={"claude-*": "m"}, default_model="m") as fleet:
        answer = await fleet.ask(name)
    assert (answer.status, neuron.asked[0][2]["model"]) == (200, "m")
    assert answer.header(b"x-cortex-model") == b"m"


async def test_a_stream_leaves_as_it_comes_and_without_the_neuron_s_comment(
    fake: Any, start: Any
) -> None:
    neuron, gate, seen = fake(M), asyncio.Event(), asyncio.Event()
    neuron.answer = lambda n: (200, SSE, [ROLE, ONE, gate, END + COMMENT + sse.DONE])

    def note(message: Any) -> None:
        if message.get("body") and ONE in message["body"]:
            seen.set()

    async with start(neuron) as fleet:
        request = asyncio.create_task(fleet.ask(stream=True, on_message=note))
        async with asyncio.timeout(2):
            await seen.wait()
        gate.set()
        answer = await request
        assert answer.body == ROLE + ONE + END + sse.DONE
        lines = await fleet.metrics()
    assert 'cortex_prompt_tokens_total{model="m",node="a"} 7.0' in lines
    assert 'cortex_completion_tokens_total{model="m",node="a"} 1.0' in lines
    assert 'cortex_time_to_first_token_seconds_count{model="m",node="a"} 1.0' in lines


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_closes_the_upstream_and_is_no_error(
    fake: Any, start: Any, stream: bool
) -> None:
    neuron, leave = fake(M), asyncio.Event()
    neuron.answer = lambda n: (200, SSE if stream else JSON, [ONE, None])
    async with start(neuron) as fleet:
        request = asyncio.create_task(fleet.ask(stream=stream, leave=leave))
        await neuron.began.wait()
        assert (await fleet.get("/fleet"))["in_flight"] == 1
        leave.set()
        async with asyncio.timeout(1):
            await neuron.left.wait()
            await request
        assert (await fleet.get("/fleet"))["in_flight"] == 0
        lines = await fleet.metrics()
    assert 'cortex_requests_total{model="m",node="a"} 1.0' in lines
    assert not [line for line in lines if line.startswith("cortex_request_errors_total{")]
    assert not [line for line in lines if line.startswith("cortex_request_duration_seconds_count{")]


async def test_a_client_that_leaves_over_a_real_connection_closes_the_upstream(
    fake: Any, start: Any
) -> None:
    neuron = fake(M)
    neuron.answer = lambda n: (200, SSE, [ONE, None])
    async with start(neuron) as fleet, serving(fleet.gateway.front) as endpoint:
        client = Client(endpoint)
        async with client.open("POST", "/v1/chat/completions", body=b'{"model":"m"}') as reply:
            assert await reply.read() == ONE
        async with asyncio.timeout(1):
            await neuron.left.wait()
        await client.close()


@pytest.mark.parametrize("end", [b"", b'data: {"half'])
async def test_a_stream_that_breaks_off_ends_in_an_error_event_and_done(
    fake: Any, start: Any, end: bytes
) -> None:
    neuron = fake(M)
    neuron.answer = lambda n: (200, SSE, [ROLE + ONE + end])
    async with start(neuron) as fleet:
        answer = await fleet.ask(stream=True)
        lines = await fleet.metrics()
    role, one, error, done, rest = answer.body.split(b"\n\n")
    assert (role + b"\n\n" + one + b"\n\n", done, rest) == (ROLE + ONE, b"data: [DONE]", b"")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "upstream_protocol_error"
    assert 'cortex_request_errors_total{model="m",node="a"} 1.0' in lines
    assert not [line for line in lines if line.startswith("cortex_rejections_total{")]


async def test_an_error_that_the_neuron_streams_passes_and_is_counted(
    fake: Any, start: Any
) -> None:
    neuron = fake(M)
    stream = ONE + b'data: {"error":{"message":"x","code":"engine_died"}}\n\n' + sse.DONE
    neuron.answer = lambda n: (200, SSE, [stream])
    async with start(neuron) as fleet:
        answer = await fleet.ask(stream=True)
        lines = await fleet.metrics()
    assert answer.body == stream
    assert 'cortex_request_errors_total{model="m",node="a"} 1.0' in lines


@pytest.mark.parametrize(
    ("status", "code", "is_error"),
    [
        (400, "context_length_exceeded", False),
        (429, "queue_full", False),
        (503, "shutting_down", True),
    ],
)
async def test_a_neuron_s_own_refusal_passes_unchanged(
    fake: Any, start: Any, status: int, code: str, is_error: bool
) -> None:
    neuron = fake(M)
    neuron.answer = lambda n: (status, [*JSON, (b"retry-after", b"7")], [refusal(code)])
    async with start(neuron) as fleet:
        answer = await fleet.ask(stream=True)
        lines = await fleet.metrics()
    assert (answer.status, answer.body) == (status, refusal(code))
    assert answer.header(b"retry-after") == b"7"
    counted = 'cortex_request_errors_total{model="m",node="a"} 1.0' in lines
    assert counted is is_error


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refusal_is_taken_to_another_replica_once(
    fake: Any, start: Any, status: int
) -> None:
    a, b = fake(M), fake(M)
    a.answer = b.answer = lambda n: (status, JSON, [refusal("queue_full")])
    async with start(a, b) as fleet:
        answer = await fleet.ask()
        assert (answer.status, answer.header(b"x-cortex-node")) == (status, b"b")
        b.answer = lambda n: (200, JSON, [b"{}"])
        answer = await fleet.ask()
        assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"b")
        lines = await fleet.metrics()
        in_flight = (await fleet.get("/fleet"))["in_flight"]
    assert (len(a.asked), len(b.asked), in_flight) == (2, 2, 0)
    assert 'cortex_requests_total{model="m",node="b"} 2.0' in lines
    assert not [line for line in lines if 'cortex_requests_total{model="m",node="a"}' in line]


@pytest.mark.parametrize("others", [1, 0])
async def test_a_node_that_is_gone_is_passed_by_or_told(fake: Any, start: Any, others: int) -> None:
    leaving = AsyncExitStack()
    endpoint = await leaving.enter_async_context(serving(fake(M)))
    async with start(endpoint, *(fake(M) for _ in range(others))) as fleet:
        await leaving.aclose()
        answer = await fleet.ask()
        lines = await fleet.metrics()
    if others:
        assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"b")
    else:
        assert error_of(answer) == (502, "upstream_connection_error")
        assert answer.header(b"retry-after") == b"2"
        assert 'cortex_request_errors_total{model="m",node="a"} 1.0' in lines


async def test_a_neuron_that_is_silent_for_too_long_is_a_504(fake: Any, start: Any) -> None:
    neuron = fake(M)
    neuron.answer = lambda n: (200, JSON, [None])
    async with start(neuron, gateway={"idle_timeout_s": 0.005}) as fleet:
        answer = await fleet.ask()
    assert error_of(answer) == (504, "upstream_timeout")
    assert answer.header(b"retry-after") == b"5"


async def test_what_a_neuron_lets_requests_wait_is_no_silence_until_the_answer_begins(
    fake: Any, start: Any
) -> None:
    neuron, idle_s = fake(M), 0.005
    neuron.activities = [ModelActivity(id="m", status="loaded", max_wait_s=3600.0)]
    neuron.answer = lambda n: (200, SSE, [b'data: {"choices":[]}\n\n', None])

    async def queue(served: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/v1/chat/completions":
            await asyncio.sleep(20 * idle_s)
        await served(scope, receive, send)

    async with (
        serving(functools.partial(queue, neuron)) as endpoint,
        start(endpoint, gateway={"idle_timeout_s": idle_s}) as fleet,
    ):
        answer = await fleet.ask(stream=True)
    # it has begun, long after the idle time; then it is as silent as none may be
    assert answer.status == 200
    assert b"upstream_timeout" in answer.body


@pytest.mark.parametrize(
    ("body", "status", "code", "told"),
    [
        (b"{", 400, "malformed_json", "is not valid JSON: Input data was truncated"),
        (b'{"messages":[]}', 400, "missing_model_field", "`model` is missing or empty"),
        (b'{"model":"m","stream":"yes"}', 400, "invalid_request_body", "at `$.stream`"),
        (b'{"model":3}', 400, "invalid_request_body", "at `$.model`"),
        (b'{"model":"' + b"x" * 513 + b'"}', 400, "invalid_request_body", "more than 512"),
        (b'{"model":"nobody/knows"}', 404, "model_not_found", "'nobody/knows' is not served"),
        (b" " * (1024 * 1024 + 1), 413, "request_too_large", "1 MiB"),
    ],
)
async def test_what_a_client_gets_wrong_is_said_and_counted_apart(
    fake: Any, start: Any, body: bytes, status: int, code: str, told: str
) -> None:
    async with start(fake(M), gateway={"max_body_mb": 1}) as fleet:
        answer = await fleet.ask(body=body)
        lines = await fleet.metrics()
    assert error_of(answer) == (status, code)
    assert told in answer.json["error"]["message"], answer.json
    assert answer.header(b"retry-after") is None
    assert answer.header(b"x-request-id")
    assert len(answer.body) < 2000
    assert f'cortex_rejections_total{{code="{code}"}} 1.0' in lines
    assert "nobody/knows" not in "".join(lines)


@pytest.mark.parametrize(
    ("states", "models", "status", "code", "told"),
    [
        ([], [Model(id="m", harness="vllm")], 404, "model_infeasible", "a: harness 'vllm' is not there, only echo"),
        ([make_state("m", "recovering")], [], 503, "model_recovering", "of 'm' failed and is being restarted"),
        ([make_state("m", "failed", last_error="no kernel")], [], 502, "load_failed", "no kernel"),
    ],
)  # fmt: skip
async def test_what_the_fleet_cannot_do_is_said_with_its_reason(
    fake: Any, start: Any, states: Any, models: Any, status: int, code: str, told: str
) -> None:
    async with start(fake(*states), models=models) as fleet:
        answer = await fleet.ask()
        decided = (await fleet.get("/fleet"))["decisions"][0]
    assert error_of(answer) == (status, code)
    assert answer.header(b"retry-after") == (b"2" if status == 503 else None)
    assert (decided["decision"], decided["model"]) == ("refuse", "m")
    assert told in answer.json["error"]["message"]


@pytest.mark.parametrize("model", ["m", "nobody/knows"])
async def test_no_neuron_up_is_a_503_that_may_be_retried(start: Any, model: str) -> None:
    async with start("http://127.0.0.1:9", models=ECHO) as fleet:
        answer = await fleet.ask(model)
    assert error_of(answer) == (503, "no_healthy_node")
    assert answer.header(b"retry-after") == b"5"


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [("m", 503, "no_healthy_node"), ("nobody/knows", 404, "model_not_found")],
)
async def test_without_nodes_only_the_catalogue_is_known(
    start: Any, model: str, status: int, code: str
) -> None:
    async with start(models=ECHO) as fleet:
        assert error_of(await fleet.ask(model)) == (status, code)


FULL = ModelActivity(id="m", status="loaded", running=1, waiting=2, max_running=1, max_waiting=2)


@pytest.mark.parametrize("joins", [False, True], ids=["loads", "joins"])
async def test_beside_a_full_replica_a_load_that_fails_costs_no_request(
    fake: Any, start: Any, joins: bool
) -> None:
    """A request that asked for the load, and one that joined it, go to the replica that there is."""
    a, b = fake(M), fake()
    a.activities = [FULL]
    under_way, go = asyncio.Event(), asyncio.Event()

    async def fail(body: Any) -> None:
        under_way.set()
        await go.wait()
        raise LoadFailedError(model="m", node="b", load_kind="engine_start_failed", reason="no")

    b.load = fail
    async with start(a, b, models=ECHO) as fleet:
        requests = [asyncio.create_task(fleet.ask()) for _ in range(2 if joins else 1)]
        await under_way.wait()
        go.set()
        answers = await asyncio.gather(*requests)
        lines = await fleet.metrics()
    assert [(n.status, n.header(b"x-cortex-node")) for n in answers] == [(200, b"a")] * len(answers)
    assert len(b.loads) == 1
    assert not [line for line in lines if line.startswith("cortex_rejections_total{")]


async def test_without_any_replica_a_load_that_fails_is_told(fake: Any, start: Any) -> None:
    neuron = fake()

    async def fail(body: Any) -> None:
        raise LoadFailedError(model="m", node="a", load_kind="engine_start_failed", reason="no")

    neuron.load = fail
    async with start(neuron, models=ECHO) as fleet:
        assert error_of(await fleet.ask()) == (502, "load_failed")


POOLED = ["/v1/embeddings", "/v1/score", "/v1/rerank", "/tokenize"]


@pytest.mark.parametrize("path", [*POOLED, "/v1/responses"])
async def test_every_route_goes_to_the_neuron_as_it_is(fake: Any, start: Any, path: str) -> None:
    neuron = fake(make_state("hub:org/m"))
    models = [Model(id="org/m", harness="echo", source="hub")]
    neuron.answer = lambda n: (200, JSON, [b'{"kept": 1.50}'])
    async with start(neuron, models=models) as fleet:
        answer = await fleet.ask(path=path, body=b'{"model": "org/m", "input": [1.50, null]}')
    assert (answer.status, answer.body) == (200, b'{"kept": 1.50}')
    ((asked_path, _, body),) = neuron.asked
    assert (asked_path, body) == (path, {"model": "hub:org/m", "input": [1.5, None]})


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (b'{"prompt_tokens":7,"total_tokens":7}', 7),
        (b'{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0}', 7),
        (b'{"total_tokens":7}', 7),
        (b"null", None),
    ],
)
async def test_tokens_of_pooled_answers_are_the_prompt_s(
    fake: Any, start: Any, usage: bytes, tokens: int | None
) -> None:
    neuron = fake(M)
    neuron.answer = lambda n: (200, JSON, [b'{"data":[],"usage":' + usage + b"}"])
    async with start(neuron) as fleet:
        await fleet.ask(path="/v1/embeddings")
        lines = await fleet.metrics()
    counted = [line for line in lines if line.startswith("cortex_prompt_tokens_total{")]
    expected = f'cortex_prompt_tokens_total{{model="m",node="a"}} {tokens}.0'
    assert counted == ([expected] if tokens else [])
    assert not [line for line in lines if line.startswith("cortex_completion_tokens_total{")]


async def test_a_responses_stream_that_breaks_off_ends_in_its_own_error_event(
    fake: Any, start: Any
) -> None:
    neuron = fake(M)
    begun = b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n'
    neuron.answer = lambda n: (200, SSE, [begun])
    async with start(neuron) as fleet:
        answer = await fleet.ask(path="/v1/responses", stream=True)
        lines = await fleet.metrics()
    assert answer.body.startswith(begun + b"event: error\ndata: ")
    error = json.loads(answer.body.removeprefix(begun).split(b"data: ")[1])
    assert (error["type"], error["code"], error["sequence_number"]) == (
        "error",
        "upstream_protocol_error",
        1,
    )
    assert 'cortex_request_errors_total{model="m",node="a"} 1.0' in lines


async def test_a_full_replica_is_asked_where_there_is_no_other_and_says_so_itself(
    fake: Any, start: Any
) -> None:
    neuron = fake(M)
    neuron.activities = [FULL]
    neuron.answer = lambda n: (429, [*JSON, (b"retry-after", b"6")], [refusal("queue_full")])
    async with start(neuron) as fleet:
        answer = await fleet.ask()
        decided = (await fleet.get("/fleet"))["decisions"][0]
    assert (error_of(answer), answer.header(b"retry-after")) == ((429, "queue_full"), b"6")
    assert decided["reason"] == "every replica is full"


@pytest.mark.parametrize(("policy", "nodes"), [("round_robin", "abab"), ("least_busy", "aaaa")])
async def test_the_policy_of_the_config_chooses(
    fake: Any, start: Any, policy: str, nodes: str
) -> None:
    async with start(fake(M), fake(M), gateway={"policy": policy}) as fleet:
        answers = [await fleet.ask() for _ in range(4)]
    assert b"".join(answer.header(b"x-cortex-node") or b"" for answer in answers).decode() == nodes


async def test_what_is_in_flight_counts_at_once(fake: Any, start: Any) -> None:
    a, b, gate = fake(M), fake(M), asyncio.Event()
    a.answer = b.answer = lambda n: (200, JSON, [gate, b"{}"])
    async with start(a, b) as fleet:
        requests = [asyncio.create_task(fleet.ask()) for _ in range(6)]
        await a.began.wait()
        await b.began.wait()
        gate.set()
        await asyncio.gather(*requests)
    assert (len(a.asked), len(b.asked)) == (3, 3)


async def test_a_model_without_entry_is_served_and_its_limits_are_the_neuron_s_business(
    fake: Any, start: Any
) -> None:
    found = make_discovery(make_device(), harnesses=("vllm",))
    neuron = fake(make_state("hub:org/m", limits=Limits(context=10)), found=found)
    async with start(neuron) as fleet:
        answer = await fleet.ask("org/m")
    assert answer.header(b"x-cortex-model") == b"hub:org/m"
    assert neuron.asked[0][2]["model"] == "hub:org/m"
