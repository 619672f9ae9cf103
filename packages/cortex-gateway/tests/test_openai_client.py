# SPDX-License-Identifier: GPL-3.0-or-later
"""An OpenAI-compatible server as a node: asked under its base URL, served as it is, and never moved."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.http.headers import Headers, find
from cortex_core.testing import collect, make_state, serving
from cortex_gateway.openai_client import OpenAIClient, read_base_url

JSON: Headers = [(b"content-type", b"application/json")]
SSE: Headers = [(b"content-type", b"text/event-stream")]
ID = "vendor/large:70b"
CHUNK = b'data: {"id":"1","model":"vendor/large:70b","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
STOP = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}}\n\n'
USER = {"role": "user", "content": "hello"}
WHOLE = {
    "id": "1",
    "model": ID,
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
}


class Server:
    """An OpenAI-compatible server under a base path, that knows chat alone.

    Attributes:
        models: what it lists.
        key: what it asks for; None: nothing.
        asked: path, headers and body of each request.
        refusal: status, headers and body of its answer to a chat; None: it answers.
        unknown: fields of a chat that it refuses, and the words it does that in.
    """

    def __init__(self, base: str = "/v1", key: bytes | None = None) -> None:
        self.base = base
        self.key = key
        self.models = [ID]
        self.refusal: tuple[int, Headers, bytes] | None = None
        self.unknown: dict[str, bytes] = {}
        self.asked: list[tuple[str, Headers, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError("HTTP only")
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.asked.append((scope["path"], list(scope["headers"]), body))
        status, headers, data = self._answer(scope["path"], scope["headers"], body)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data, "more_body": False})

    def _answer(self, path: str, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
        if self.key is not None and find(headers, b"authorization") != b"Bearer " + self.key:
            return 401, JSON, b'{"error":{"message":"Incorrect API key","code":"invalid_api_key"}}'
        if path == f"{self.base}/models":
            listed = [{"id": name, "object": "model", "max_model_len": 100} for name in self.models]
            return 200, JSON, json.dumps({"object": "list", "data": listed}).encode()
        if path != f"{self.base}/chat/completions":
            return 404, JSON, b'{"detail":"Not Found"}'
        if self.refusal is not None:
            return self.refusal
        asked = json.loads(body)
        if found := [told for name, told in self.unknown.items() if name in asked]:
            return 400, JSON, b'{"error":{"message":"%b","type":"x"}}' % found[0]
        if not asked.get("stream"):
            return 200, JSON, json.dumps(WHOLE).encode()
        usage = USAGE if (asked.get("stream_options") or {}).get("include_usage") else b""
        return 200, SSE, CHUNK + STOP + usage + b"data: [DONE]\n\n"

    @property
    def paths(self) -> list[str]:
        """Of what it was asked for beside its models."""
        return [path for path, _, _ in self.asked if not path.endswith("/models")]


@pytest.fixture(name="outside")
def _outside(start: Any) -> Any:
    @asynccontextmanager
    async def open_gateway(
        server: Server, *neurons: Any, path: str | None = None, **config: Any
    ) -> AsyncIterator[Any]:
        key = config.pop("api_key", None)
        async with serving(server) as endpoint:
            url = endpoint + (server.base if path is None else path)
            node = {"name": "cloud", "endpoint": url, "kind": "openai", "api_key": key}
            async with start(*neurons, more_nodes=[node], **config) as fleet:
                yield fleet

    return open_gateway


@pytest.mark.parametrize(
    ("base_url", "endpoint", "cut"),
    [
        ("http://h:8080", "http://h:8080", ""),
        ("http://h:8080/", "http://h:8080", ""),
        ("http://h:8080/v1", "http://h:8080", ""),
        ("https://h/api/v1/", "https://h/api", ""),
        ("https://h/v1beta/openai", "https://h/v1beta/openai", "/v1"),
        ("https://h/api/paas/v4", "https://h/api/paas/v4", "/v1"),
    ],
)
def test_a_base_url_is_what_its_clients_are_given(base_url: str, endpoint: str, cut: str) -> None:
    assert read_base_url(base_url) == (endpoint, cut)


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("/v1", None),
        ("/v1", ""),
        ("/api/v1", None),
        ("/api/v1", "/api/v1/"),
        ("/beta/openai", None),
    ],
)
async def test_its_models_are_served_under_its_base_path(
    outside: Any, base: str, path: str | None
) -> None:
    server = Server(base)
    async with outside(server, path=path) as fleet:
        answer = await fleet.ask(ID)
        lines = await fleet.metrics()
    assert (answer.status, answer.json) == (200, WHOLE)
    assert (answer.header(b"x-cortex-node"), answer.header(b"x-cortex-model")) == (
        b"cloud",
        ID.encode(),
    )
    assert server.paths == [f"{base}/chat/completions"]
    assert f'cortex_prompt_tokens_total{{model="{ID}",node="cloud"}} 7.0' in lines


async def test_it_is_shown_its_key_and_nothing_of_ours_or_the_client_s(outside: Any) -> None:
    server = Server(key=b"k3y")
    async with outside(server, api_key="k3y") as fleet:
        sent = [(b"authorization", b"Bearer mine"), (b"api-key", b"mine"), (b"x-other", b"1")]
        assert (await fleet.ask(ID, headers=sent)).status == 200
    headers = dict(server.asked[-1][1])
    assert (headers[b"authorization"], headers[b"x-other"]) == (b"Bearer k3y", b"1")
    assert not [name for name in headers if name.startswith(b"x-cortex-") or name == b"api-key"]
    assert dict(server.asked[0][1])[b"authorization"] == b"Bearer k3y"


async def test_a_key_that_it_refuses_is_no_client_s_fault(outside: Any) -> None:
    server = Server()
    async with outside(server, api_key="old") as fleet:
        server.key = b"new"
        answer = await fleet.ask(ID)
    assert (answer.status, answer.json["error"]["code"]) == (503, "no_healthy_node")


@pytest.mark.parametrize("wants_usage", [True, False])
async def test_a_stream_passes_as_it_is_and_its_usage_is_read(
    outside: Any, wants_usage: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    async with outside(Server()) as fleet:
        answer = await fleet.ask(ID, stream=True, **options)
        lines = await fleet.metrics()
    assert answer.body == CHUNK + STOP + (USAGE if wants_usage else b"") + b"data: [DONE]\n\n"
    assert f'cortex_completion_tokens_total{{model="{ID}",node="cloud"}} 1.0' in lines
    prompt = f'cortex_prompt_tokens_total{{model="{ID}",node="cloud"}} 7.0'
    assert (prompt in lines) is wants_usage


@pytest.mark.parametrize("stream", [True, False])
async def test_it_is_spoken_to_in_chat_whatever_the_client_speaks(
    outside: Any, stream: bool
) -> None:
    server = Server()
    async with outside(server) as fleet:
        message = await fleet.ask(
            ID, path="/v1/messages", stream=stream, max_tokens=9, messages=[USER]
        )
        response = await fleet.ask(ID, path="/v1/responses", stream=stream, input="hello")
    assert (message.status, response.status) == (200, 200)
    for answer in (message, response):
        assert b'"hi"' in answer.body
        assert ID.encode() in answer.body
    assert server.paths == ["/v1/chat/completions", "/v1/responses", "/v1/chat/completions"]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b'{"detail":"Not Found"}', "Not Found"),
        (422, b'{"detail":[{"loc":["body","n"],"msg":"no"}]}', "body.n: no"),
        (400, b"{}", "The upstream answered HTTP 400 and did not say why."),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_what_it_refuses_in_its_own_words_is_told_in_the_client_s_envelope(
    outside: Any, path: str, status: int, body: bytes, message: str
) -> None:
    server = Server()
    server.refusal = status, JSON, body
    async with outside(server) as fleet:
        answer = await fleet.ask(ID, path=path, max_tokens=9, messages=[USER])
    assert (answer.status, answer.json["error"]["message"]) == (status, message)
    assert answer.json["error"]["type"].endswith("_error")


KWARGS = b"Unrecognized request argument supplied: chat_template_kwargs"
PREFILL = b"Unrecognized request arguments supplied: add_generation_prompt, continue_final_message"
MAX = b"'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
STRICT = {"chat_template_kwargs": KWARGS, "continue_final_message": PREFILL, "max_tokens": MAX}


@pytest.mark.parametrize("stream", [True, False])
async def test_what_a_strict_server_refuses_of_a_translation_it_is_asked_without(
    outside: Any, stream: bool
) -> None:
    server, asked = Server(), {"max_tokens": 9, "stream": stream}
    server.unknown = STRICT
    prefill = [USER, {"role": "assistant", "content": "h"}]
    async with outside(server) as fleet:
        answers = [
            await fleet.ask(ID, path="/v1/messages", messages=messages, **asked)
            for messages in (prefill, prefill, [USER])
        ]
    dropped = [answer.header(b"x-cortex-dropped") for answer in answers]
    fields = b"add_generation_prompt, chat_template_kwargs, continue_final_message"
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert dropped == [fields, fields, b"chat_template_kwargs"]
    # Only the first one had to find out.
    assert len(server.paths) == 4 + 1 + 1
    sent = json.loads(server.asked[-1][2])
    assert (sent["max_completion_tokens"], "max_tokens" in sent) == (9, False)
    assert sent["messages"] == [USER]


@pytest.mark.parametrize(
    "told",
    [b"'max_tokens' is too large", b"no", b"max_completion_tokens", b"chat_template_kwargs"],
)
async def test_any_other_refusal_stands_as_it_is(outside: Any, told: bytes) -> None:
    server = Server()
    server.unknown = {"messages": told}
    async with outside(server) as fleet:
        asked = {"max_tokens": 9, "chat_template_kwargs": {}, "messages": [USER]}
        answer = await fleet.ask(ID, **asked)
        server.unknown = {}
        assert (await fleet.ask(ID, **asked)).status == 200
    assert (answer.status, answer.body) == (
        400,
        b'{"error":{"message":"%b","type":"x"}}' % told,
    )
    # What did not help is not left out the next time.
    assert json.loads(server.asked[-1][2]) == {"model": ID, **asked}


@pytest.mark.parametrize("body", [b"{}", b"<html>"])
async def test_a_redirect_is_no_answer(outside: Any, body: bytes) -> None:
    server = Server()
    server.refusal = 302, [*JSON, (b"location", b"/login")], body
    async with outside(server) as fleet:
        answer = await fleet.ask(ID)
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_protocol_error")
    assert (answer.header(b"location"), answer.header(b"retry-after")) == (None, b"2")


@pytest.mark.parametrize(
    ("status", "sent", "after"),
    [
        (502, None, b"2"),
        (503, None, b"5"),
        (504, None, b"5"),
        (504, b"9", b"9"),
        (500, None, None),
        (429, None, None),
    ],
)
async def test_what_may_work_later_says_when(
    outside: Any, status: int, sent: bytes | None, after: bytes | None
) -> None:
    server, told = Server(), b'{"error":{"message":"why"}}'
    server.refusal = status, [*JSON, *([(b"Retry-After", sent)] if sent else [])], told
    async with outside(server) as fleet:
        answer = await fleet.ask(ID)
    assert (answer.status, answer.header(b"retry-after"), answer.body) == (status, after, told)


async def test_it_is_listed_with_its_models_and_where_they_are(fake: Any, outside: Any) -> None:
    async with outside(Server(), fake(make_state(ID), make_state("m"))) as fleet:
        listed = {entry["id"]: entry for entry in (await fleet.get("/v1/models"))["data"]}
        one = await fleet.get(f"/v1/models/{ID}")
        nodes = {node["name"]: node for node in (await fleet.get("/fleet"))["nodes"]}
        health = await fleet.get("/health")
    assert [place["node"] for place in listed[ID]["locations"]] == ["a", "cloud"]
    assert (listed[ID]["loaded"], listed[ID]["max_model_len"], one["id"]) == (True, 100, ID)
    assert nodes["cloud"]["harnesses"] == ["openai"]
    assert [model["id"] for model in nodes["cloud"]["models"]] == [ID]
    assert (health["status"], health["nodes"]) == ("ok", {"healthy": 2, "total": 2})


async def test_no_model_is_placed_there(outside: Any) -> None:
    async with outside(Server(), models=[Model(id="m", vram_mb=10)]) as fleet:
        answer = await fleet.ask("m")
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_infeasible")
    assert "cloud: harness 'vllm' is not there, only openai" in answer.json["error"]["message"]


@pytest.mark.parametrize("verb", ["load", "unload", "sleep", "wake"])
async def test_an_order_to_move_its_models_is_refused_with_the_reason(
    outside: Any, verb: str
) -> None:
    server = Server()
    async with outside(server) as fleet:
        order = json.dumps({"model_id": ID}).encode()
        answer = await collect(fleet.gateway.front, "POST", f"/fleet/models/{verb}", body=order)
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request_body")
    assert f"'{ID}' is served by 'cloud' as it is" in answer.json["error"]["message"]
    assert server.paths == []


@pytest.mark.parametrize("is_up", [True, False])
async def test_a_neuron_has_a_model_loaded_though_a_server_lists_the_same_id(
    fake: Any, outside: Any, is_up: bool
) -> None:
    neuron = fake(make_state(ID)) if is_up else fake()
    async with outside(Server(), neuron, models=[Model(id=ID, harness="echo")]) as fleet:
        body = json.dumps({"model_id": ID}).encode()
        answer = await collect(fleet.gateway.front, "POST", "/fleet/models/load", body=body)
    told = {"status": "loaded", "model_id": ID, "node": "a", "already": is_up}
    assert (answer.status, answer.json) == (200, {"done": [told]})
    assert len(neuron.loads) == (0 if is_up else 1)


async def test_a_connection_there_is_let_go_before_its_server_does() -> None:
    server = Server()
    async with serving(server) as endpoint:
        client = OpenAIClient(endpoint, idle_timeout_s=1, headers=[])
        await client.look(1)
        (kept,) = client._connections._idle  # type: ignore[attr-defined]
        left_s = kept.deadline_s - asyncio.get_running_loop().time()
        await client.close()
    assert 0 < left_s <= 2


async def test_a_replica_there_is_one_among_others(fake: Any, outside: Any) -> None:
    neuron = fake(make_state(ID))
    neuron.answer = lambda n: (429, JSON, [b'{"error":{"message":"no","code":"queue_full"}}'])
    async with outside(Server(), neuron) as fleet:
        answer = await fleet.ask(ID)
    assert (answer.status, answer.header(b"x-cortex-node")) == (200, b"cloud")
    assert len(neuron.asked) == 1


async def test_a_model_that_it_lists_no_more_is_unknown(outside: Any) -> None:
    server = Server()
    async with outside(server) as fleet:
        server.models = ["other"]
        await fleet.poll()
        answers = [await fleet.ask(ID), await fleet.ask("other")]
    assert [answer.status for answer in answers] == [404, 200]


@pytest.mark.parametrize("path", ["/wrong/v1", "/v1/chat"])
async def test_a_url_that_is_no_base_url_is_a_node_that_is_down(outside: Any, path: str) -> None:
    async with outside(Server(), path=path) as fleet:
        (node,) = (await fleet.get("/fleet"))["nodes"]
    assert node["up"] is False


async def test_nobody_tells_a_model_there_to_go_when_it_is_idle(outside: Any) -> None:
    server = Server()
    async with outside(server, eviction={"idle_ttl_s": 0.001}) as fleet:
        for _ in range(3):
            await fleet.poll()
        assert (await fleet.ask(ID)).status == 200
    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.slow
async def test_it_is_looked_at_rarely_unless_it_fails_or_has_requests(
    fake: Any, outside: Any
) -> None:
    server, neuron = Server(), fake()

    async def looks() -> int:
        """How often it was looked at while the neuron was forty times."""
        before, seen = len(server.asked), len(neuron.polls)
        while neuron.polls[seen:].count("/models") < 40:
            await asyncio.sleep(0)
        return len(server.asked) - before

    async with (
        asyncio.timeout(10),
        outside(server, neuron, poll={"interval_s": 0.002, "timeout_s": 1}) as fleet,
    ):
        assert 1 <= await looks() <= 15
        with fleet.gateway.fleet.serving("cloud", ID):
            assert await looks() >= 25
        server.key = b"another"
        while not fleet.gateway.fleet.node("cloud").misses:
            await asyncio.sleep(0)
        assert await looks() >= 25
        assert not fleet.gateway.fleet.node("cloud").is_up
