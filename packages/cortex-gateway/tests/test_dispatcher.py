# SPDX-License-Identifier: GPL-3.0-or-later
"""A request that its first place does not serve: another replica, then another model, and never in a circle."""

import asyncio
import json
from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.errors import LoadFailedError
from cortex_core.testing import make_state

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream")]
ONE = b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n'
DONE = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
M = make_state("m")
HELLO = {"role": "user", "content": "hello"}
BOTH = [Model(id="big", harness="vllm"), Model(id="small", harness="echo")]


def refusal(code: str | int) -> bytes:
    return json.dumps({"error": {"message": "not now", "code": code}}).encode()


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


def counted(lines: list[str], name: str) -> list[str]:
    return sorted(line for line in lines if line.startswith(f"{name}{{"))


async def test_every_replica_that_refuses_is_asked_once_and_the_last_one_s_word_stands(
    fake: Any, start: Any
) -> None:
    nodes = [fake(M), fake(M), fake(M)]
    for number, node in enumerate(nodes):
        retry = (b"retry-after", str(number + 1).encode())
        node.answer = lambda n, retry=retry: (429, [*JSON, retry], [refusal("queue_full")])
    async with start(*nodes) as fleet:
        answer = await fleet.ask()
        lines = await fleet.metrics()
    assert error_of(answer) == (429, "queue_full")
    assert (answer.header(b"x-cortex-node"), answer.header(b"retry-after")) == (b"c", b"3")
    assert [len(node.asked) for node in nodes] == [1, 1, 1]
    assert counted(lines, "cortex_retries_total") == [
        'cortex_retries_total{model="m",node="a",reason="refused"} 1.0',
        'cortex_retries_total{model="m",node="b",reason="refused"} 1.0',
    ]
    assert counted(lines, "cortex_requests_total") == [
        'cortex_requests_total{model="m",node="c"} 1.0'
    ]


GONE = (404, JSON, [refusal("model_not_found")])
GONE_THERE = (404, JSON, [json.dumps({"error": {"message": "no such model: m"}}).encode()])


async def test_a_node_that_has_its_model_no_more_brings_it_up_again(fake: Any, start: Any) -> None:
    """It was started anew, or told to unload it, and we have not looked since."""
    neuron = fake(M)
    neuron.answer = lambda n: GONE if n == 0 else (200, JSON, [b"{}"])
    async with start(neuron, models=[Model(id="m", harness="echo")]) as fleet:
        neuron.states.clear()
        answer = await fleet.ask()
        lines = await fleet.metrics()
    assert (answer.status, answer.header(b"x-cortex-decision")) == (200, b"load")
    assert [body["model_id"] for body in neuron.loads] == ["m"]
    assert counted(lines, "cortex_requests_total") == [
        'cortex_requests_total{model="m",node="a"} 1.0'
    ]


async def test_a_replica_that_has_gone_is_passed_by_and_noticed(fake: Any, start: Any) -> None:
    a, b = fake(M), fake(M)
    a.answer = lambda n: GONE
    async with start(a, b) as fleet:
        a.states.clear()
        answer = await fleet.ask()
        told = await fleet.get("/fleet")
        lines = await fleet.metrics()
    assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"b")
    assert [node["models"] for node in told["nodes"] if node["name"] == "a"] == [[]]
    assert counted(lines, "cortex_retries_total") == [
        'cortex_retries_total{model="m",node="a",reason="refused"} 1.0'
    ]


async def test_what_nobody_has_any_more_and_nobody_declares_is_not_found(
    fake: Any, start: Any
) -> None:
    neuron = fake(M)
    neuron.answer = lambda n: GONE
    async with start(neuron) as fleet:
        neuron.states.clear()
        answer = await fleet.ask()
    assert error_of(answer) == (404, "model_not_found")
    assert len(neuron.asked) == 1


async def test_a_node_that_lists_what_it_has_not_is_asked_twice_and_its_word_stands(
    fake: Any, start: Any
) -> None:
    neuron = fake(M)
    neuron.answer = lambda n: GONE_THERE
    async with start(neuron) as fleet:
        answer = await fleet.ask()
    assert (answer.status, answer.json["error"]["message"]) == (404, "no such model: m")
    assert len(neuron.asked) == 2


async def test_the_first_replica_that_takes_it_serves(fake: Any, start: Any) -> None:
    a, b, c = fake(M), fake(M), fake(M)
    a.answer = b.answer = lambda n: (503, JSON, [refusal("shutting_down")])
    c.answer = lambda n: (200, SSE, [ONE, DONE])
    async with start(a, b, c) as fleet:
        answer = await fleet.ask(stream=True)
        in_flight = (await fleet.get("/fleet"))["in_flight"]
    assert (answer.status, answer.body, in_flight) == (200, ONE + DONE, 0)
    assert answer.header(b"x-cortex-node") == b"c"


async def test_a_request_that_engines_die_of_does_not_go_round_the_fleet(
    fake: Any, start: Any
) -> None:
    """It is lost twice at most beside the first time, so there are three engines that may die of it."""
    nodes = [fake(M), fake(M), fake(M), fake(M)]
    for node in nodes:
        node.answer = lambda n: (502, JSON, [refusal("engine_died")])
    async with start(*nodes) as fleet:
        answer = await fleet.ask()
        lines = await fleet.metrics()
    assert error_of(answer) == (502, "engine_died")
    assert [len(node.asked) for node in nodes] == [1, 1, 1, 0]
    assert 'cortex_retries_total{model="m",node="a",reason="lost"} 1.0' in lines


async def test_a_request_that_waits_at_a_node_that_goes_down_is_asked_elsewhere(
    fake: Any, start: Any
) -> None:
    a, b = fake(M), fake(M)
    a.answer = lambda n: (200, JSON, [None])
    async with start(a, b, poll={"interval_s": 3600, "timeout_s": 2, "misses": 1}) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await a.began.wait()
        a.down = True
        await fleet.poll()
        answer = await asking
        await a.left.wait()
        assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"b")
        steps = (await fleet.get("/fleet/requests/" + answer.header(b"x-request-id").decode()))[
            "steps"
        ]
    assert [step["reason"] for step in steps if step["decision"] == "elsewhere"] == [
        "The connection to a failed: the node went down before it answered."
    ]


async def test_a_stream_that_flows_outlives_the_polls_of_its_node(fake: Any, start: Any) -> None:
    a = fake(M)
    release = asyncio.Event()
    a.answer = lambda n: (200, SSE, [ONE, release, DONE])
    async with start(a, poll={"interval_s": 3600, "timeout_s": 2, "misses": 1}) as fleet:
        asking = asyncio.create_task(fleet.ask(stream=True))
        await a.began.wait()
        a.down = True
        await fleet.poll()
        assert (await fleet.get("/fleet"))["nodes"][0]["up"] is False
        release.set()
        assert (await asking).body == ONE + DONE


async def test_after_the_first_byte_nobody_else_is_asked(fake: Any, start: Any) -> None:
    a, b = fake(M), fake(M)
    a.answer = lambda n: (200, SSE, [ONE])
    async with start(a, b, models=BOTH, aliases={"x": "m"}, fallbacks={"x": ["small"]}) as fleet:
        answer = await fleet.ask(stream=True)
    assert answer.body.startswith(ONE)
    assert b"upstream_protocol_error" in answer.body
    assert b.asked == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_model_that_can_run_nowhere_is_served_by_its_fallback(
    fake: Any, start: Any, path: str
) -> None:
    node = fake()
    said = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    answer_of = {"id": "1", "model": "small", "choices": [said]}
    node.answer = lambda n: (200, JSON, [json.dumps(answer_of).encode()])
    async with start(node, models=BOTH, fallbacks={"big": ["small"]}) as fleet:
        answer = await fleet.ask("big", path=path, max_tokens=5, messages=[HELLO])
        lines = await fleet.metrics()
        decided = (await fleet.get("/fleet"))["decisions"]
    assert (answer.status, answer.json["model"]) == (200, "small")
    assert answer.header(b"x-cortex-model") == b"small"
    assert [body["model_id"] for body in node.loads] == ["small"]
    assert node.asked[0][2]["model"] == "small"
    assert counted(lines, "cortex_fallbacks_total") == [
        'cortex_fallbacks_total{code="model_infeasible",fallback="small",model="big"} 1.0'
    ]
    assert counted(lines, "cortex_rejections_total") == []
    assert [(each["model"], each["decision"]) for each in decided] == [
        ("small", "load"),
        ("big", "refuse"),
    ]


async def test_fallbacks_of_a_fallback_come_after_it(fake: Any, start: Any) -> None:
    models = [Model(id=name, harness="vllm") for name in ("big", "mid")]
    node = fake(make_state("tiny"))
    async with start(
        node,
        models=[*models, Model(id="tiny", harness="echo")],
        fallbacks={"big": ["mid"], "mid": ["tiny"]},
    ) as fleet:
        answer = await fleet.ask("big")
        lines = await fleet.metrics()
    assert answer.header(b"x-cortex-model") == b"tiny"
    assert len(counted(lines, "cortex_fallbacks_total")) == 2


async def test_a_model_whose_load_fails_is_served_by_its_fallback(fake: Any, start: Any) -> None:
    node = fake(make_state("small"))

    async def fail(body: Any) -> None:
        raise LoadFailedError(model="big", node="a", load_kind="engine_start_failed", reason="no")

    node.load = fail
    models = [Model(id="big", harness="echo"), BOTH[1]]
    async with start(node, models=models, fallbacks={"big": ["small"]}) as fleet:
        answer = await fleet.ask("big")
        waiting = (await fleet.get("/fleet"))["waiting"]
    assert (answer.status, answer.header(b"x-cortex-model")) == (200, b"small")
    assert answer.header(b"x-cortex-decision") == b"load"
    assert waiting == []


@pytest.mark.parametrize(
    ("status", "code", "falls"),
    [
        (502, "engine_died", True),
        (503, "model_recovering", True),
        (503, "shutting_down", False),
        (429, "queue_full", False),
        (503, 503, False),
        (429, "slow_down", False),
        (400, "context_length_exceeded", False),
        (500, "internal_error", False),
    ],
)
async def test_a_model_that_fails_falls_back_and_one_that_is_busy_does_not(
    fake: Any, start: Any, status: int, code: str | int, falls: bool
) -> None:
    node = fake(make_state("big"), make_state("small"))
    node.answer = lambda n: (
        (status, JSON, [refusal(code)]) if n == 0 else (200, JSON, [b'{"model":"small"}'])
    )
    models = [Model(id="big", harness="echo"), BOTH[1]]
    async with start(node, models=models, fallbacks={"big": ["small"]}) as fleet:
        answer = await fleet.ask("big")
        lines = await fleet.metrics()
    asked = [body["model"] for _, _, body in node.asked]
    assert asked == (["big", "small"] if falls else ["big"])
    assert answer.status == (200 if falls else status)
    model = "small" if falls else "big"
    assert counted(lines, "cortex_requests_total") == [
        f'cortex_requests_total{{model="{model}",node="a"}} 1.0'
    ]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_node_that_is_gone_leaves_its_model_to_the_fallback(
    fake: Any, start: Any, stream: bool
) -> None:
    node = fake(make_state("small"))
    node.answer = lambda n: (200, SSE, [ONE, DONE]) if stream else (200, JSON, [b"{}"])
    models = [Model(id="big", harness="echo", pinned_on=["b"]), BOTH[1]]
    async with start(
        node, "http://127.0.0.1:9", models=models, fallbacks={"big": ["small"]}
    ) as fleet:
        answer = await fleet.ask("big", stream=stream)
    assert (answer.status, answer.header(b"x-cortex-model")) == (200, b"small")


async def test_where_no_fallback_serves_the_model_that_was_asked_for_is_told(
    fake: Any, start: Any
) -> None:
    models = [Model(id="big", harness="vllm"), Model(id="other", harness="vllm")]
    async with start(fake(), models=models, fallbacks={"big": ["other"]}) as fleet:
        answer = await fleet.ask("big")
        lines = await fleet.metrics()
    assert error_of(answer) == (404, "model_infeasible")
    assert "'big'" in answer.json["error"]["message"]
    assert counted(lines, "cortex_rejections_total") == [
        'cortex_rejections_total{code="model_infeasible"} 1.0'
    ]


async def test_a_request_that_neither_its_model_nor_a_fallback_serves_is_counted_once(
    fake: Any, start: Any
) -> None:
    node = fake(make_state("big"))
    node.answer = lambda n: (502, JSON, [refusal("engine_died")])
    models = [Model(id="big", harness="echo"), Model(id="other", harness="vllm")]
    async with start(node, models=models, fallbacks={"big": ["other"]}) as fleet:
        answer = await fleet.ask("big")
        lines = await fleet.metrics()
    assert (error_of(answer), answer.header(b"retry-after")) == ((502, "engine_died"), b"2")
    assert counted(lines, "cortex_rejections_total") == [
        'cortex_rejections_total{code="engine_died"} 1.0'
    ]
    assert counted(lines, "cortex_requests_total") == []


async def test_a_fallback_that_may_serve_later_is_worth_a_retry(fake: Any, start: Any) -> None:
    models = [Model(id="big", harness="vllm"), Model(id="other", harness="echo")]
    node = fake(make_state("other", "recovering"))
    async with start(node, models=models, fallbacks={"big": ["other"]}) as fleet:
        answer = await fleet.ask("big")
    assert error_of(answer) == (503, "model_recovering")
    assert answer.header(b"retry-after") == b"2"


async def test_a_conversation_stays_on_its_node_and_others_spread(fake: Any, start: Any) -> None:
    nodes = [fake(M), fake(M), fake(M)]
    async with start(*nodes, gateway={"policy": "session_affinity"}) as fleet:

        async def place(session: bytes) -> bytes:
            answer = await fleet.ask(headers=[(b"x-claude-code-session-id", session)])
            return answer.header(b"x-cortex-node") or b""

        first = [await place(b"%d" % number) for number in range(12)]
        again = await asyncio.gather(*(place(b"%d" % number) for number in range(12)))
    assert again == first
    assert set(first) == {b"a", b"b", b"c"}


async def test_a_conversation_is_known_by_its_first_messages(fake: Any, start: Any) -> None:
    async with start(fake(M), fake(M), fake(M), gateway={"policy": "session_affinity"}) as fleet:
        said: list[dict[str, str]] = []
        nodes = set()
        for turn in range(4):
            said.append({"role": "user", "content": f"turn {turn}"})
            answer = await fleet.ask(messages=said)
            nodes.add(answer.header(b"x-cortex-node"))
            said.append({"role": "assistant", "content": "yes"})
    assert len(nodes) == 1


def lost_after_head(neuron: Any, *, is_cut: bool) -> Any:
    """A neuron whose streams are a head and nothing else."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] == "GET":
            await neuron(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        await send({"type": "http.response.body", "body": b"", "more_body": is_cut})
        if is_cut:
            raise ConnectionError

    return app


@pytest.mark.parametrize("is_cut", [True, False])
async def test_a_stream_that_is_lost_before_its_first_byte_is_asked_for_elsewhere(
    fake: Any, start: Any, is_cut: bool
) -> None:
    other = fake(M)
    other.answer = lambda n: (200, SSE, [ONE, DONE])
    async with start(lost_after_head(fake(M), is_cut=is_cut), other) as fleet:
        answer = await fleet.ask(stream=True)
    assert (answer.status, answer.body) == (200, ONE + DONE)
    assert answer.header(b"x-cortex-node") == b"b"
    async with start(lost_after_head(fake(M), is_cut=is_cut)) as fleet:
        answer = await fleet.ask(stream=True)
    code = "upstream_connection_error" if is_cut else "upstream_protocol_error"
    assert error_of(answer) == (502, code)
    assert answer.header(b"retry-after") == b"2"
