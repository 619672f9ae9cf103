# SPDX-License-Identifier: GPL-3.0-or-later
"""An error of every kind, in every dialect and every phase: envelope, status, headers, and the event of a stream."""

import asyncio
import json
import string
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core import errors
from cortex_core.catalogue import Model
from cortex_core.errors import CortexError
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Front
from cortex_core.testing import collect, make_state
from cortex_gateway.dialects import build_dialects
from cortex_gateway.dialects.dialect import Dialect, Translator
from cortex_gateway.dialects.responses_chat import ResponsesByChat

JSON = [(b"content-type", b"application/json")]
REQUEST = [(b"x-request-id", b"r1")]

# Anthropic's words, from its documentation; every other 4xx is invalid_request_error, every other 5xx api_error.
THEIRS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
CHAT_BODY = (
    b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":9,"stream":true}'
)
BODIES = {
    "/v1/chat/completions": CHAT_BODY,
    "/v1/completions": b'{"model":"m","prompt":"hi","stream":true}',
    "/v1/responses": b'{"model":"m","input":"hi","stream":true}',
    "/v1/messages": CHAT_BODY,
    "/v1/messages/count_tokens": CHAT_BODY,
    "/v1/embeddings": b'{"model":"m","input":"hi"}',
    "/v1/score": b'{"model":"m","text_1":"a","text_2":"b"}',
    "/v1/rerank": b'{"model":"m","query":"a","documents":["b"]}',
    "/tokenize": b'{"model":"m","prompt":"hi"}',
}
CREATED = b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{}}\n\n'
CHUNK = b'data: {"id":"1","choices":[{"index":0,"text":"a","delta":{"content":"a"}}]}\n\n'


def leaves(kind: type[CortexError] = CortexError) -> Iterator[type[CortexError]]:
    children = kind.__subclasses__()
    if not children:
        yield kind
    for child in children:
        yield from leaves(child)


def make(kind: type[CortexError]) -> CortexError:
    """One with every fact that its sentence names."""
    names = [field for _, field, _, _ in string.Formatter().parse(kind.says) if field]
    facts: dict[str, Any] = {name: 1.0 if name.endswith("_s") else f"the {name}" for name in names}
    return kind(**facts)


KINDS = [
    kind
    for kind in leaves()
    # others carry what somebody else has told, and have no code of their own
    if kind is not errors.OperatorError and kind.__module__ == errors.__name__
]
NAMES = [kind.__name__ for kind in KINDS]
STREAMED = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]


def is_anthropic(path: str) -> bool:
    return path.startswith("/v1/messages")


def message_of(error: CortexError, path: str) -> str:
    is_length = isinstance(error, errors.ContextLengthExceededError) and is_anthropic(path)
    return f"prompt is too long: {error.message}" if is_length else error.message


# What a neuron says of our secret is no fault of the client's.
OURS = errors.NoHealthyNodeError(model="m", reason="a: it refuses our secret")


def check_envelope(told: Any, error: CortexError, path: str) -> None:
    body = told["error"]
    assert body["message"] == message_of(error, path)
    assert body["code"] == error.code
    assert all(body[name] == fact for name, fact in error.facts.items())
    if is_anthropic(path):
        other = "invalid_request_error" if error.status < 500 else "api_error"
        assert (told["type"], told["request_id"]) == ("error", "r1")
        assert body["type"] == THEIRS.get(error.status, other)
    else:
        assert body["type"] == error.kind
        assert "param" in body


def check_answer(answer: Any, error: CortexError, path: str) -> None:
    status = 529 if is_anthropic(path) and error.status == 503 else error.status
    assert answer.status == status
    assert answer.header(b"content-type") == b"application/json"
    assert answer.header(b"x-request-id") == b"r1"
    after = None if error.retry_after_s is None else str(round(error.retry_after_s)).encode()
    assert answer.header(b"retry-after") == after
    check_envelope(answer.json, error, path)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
async def test_what_we_refuse(kind: type[CortexError], path: str) -> None:
    async def refuse(exchange: Exchange, body: bytes) -> None:
        raise make(kind)

    front = Front(daemon="gateway", hot={path: refuse}, routes=[])
    check_answer(await collect(front, "POST", path, headers=REQUEST, body=b"{}"), make(kind), path)


@pytest.mark.parametrize("version", [[], [(b"anthropic-version", b"2023-06-01")]])
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
async def test_what_is_refused_where_both_dialects_ask(
    kind: type[CortexError], version: list[Any]
) -> None:
    async def refuse(request: Request) -> Response:
        raise make(kind)

    front = Front(daemon="gateway", hot={}, routes=[Route("/v1/models", refuse)])
    answer = await collect(front, "GET", "/v1/models", headers=[*REQUEST, *version])
    check_answer(answer, make(kind), "/v1/messages" if version else "/v1/models")


BAD_REQUESTS: list[tuple[str, list[tuple[bytes, bytes]], bytes, str]] = [
    ("GET", [], b"", "method_not_allowed"),
    ("POST", [(b"content-type", b"image/png")], b"{}", "unsupported_media_type"),
    ("POST", [], b"{", "malformed_json"),
    ("POST", [], b"[]", "invalid_request_body"),
    ("POST", [], b"{}", "missing_model_field"),
    ("POST", [], b'{"model":7}', "invalid_request_body"),
    ("POST", [], b" " * 2**21, "request_too_large"),
]


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_no_request_of_its_dialect(fake: Any, start: Any, path: str) -> None:
    async with start(fake(make_state("m")), gateway={"max_body_mb": 1}) as fleet:
        for method, fields, body, code in BAD_REQUESTS:
            headers = [*REQUEST, *fields]
            answer = await collect(fleet.gateway.front, method, path, headers=headers, body=body)
            assert (answer.status, answer.json["error"]["code"]) == (errors.status_of(code), code)
            assert answer.json.get("type") == ("error" if is_anthropic(path) else None)


@pytest.mark.slow
@pytest.mark.parametrize("path", BODIES)
async def test_what_a_neuron_refuses(fake: Any, start: Any, path: str) -> None:
    neuron = fake(make_state("m"))
    told: list[CortexError] = []

    def answer(number: int) -> Any:
        after = told[-1].retry_after_s
        fields = [(b"retry-after", str(round(after)).encode())] if after is not None else []
        return told[-1].status, [*JSON, *fields], [errors.write_openai(told[-1])]

    neuron.answer = answer
    async with start(neuron) as fleet:
        for kind in KINDS:
            told.append(make(kind))
            got = await fleet.ask(path=path, body=BODIES[path], headers=REQUEST)
            check_answer(got, OURS if told[-1].status == 401 else told[-1], path)


def read_events(out: bytes) -> list[tuple[str, Any]]:
    """Name and data of each event; of `[DONE]`, just that."""
    events: list[tuple[str, Any]] = []
    for raw in out.split(b"\n\n")[:-1]:
        fields = dict(line.split(b": ", 1) for line in raw.split(b"\n"))
        data = fields[b"data"]
        name = fields.get(b"event", b"").decode()
        events.append((name, "[DONE]" if data == b"[DONE]" else json.loads(data)))
    return events


def open_stream(dialect: Dialect) -> tuple[Translator, bytes]:
    """A stream of which one piece came, and that piece as the client has it."""
    asked = dialect.read(BODIES[dialect.path])
    meter = dialect.meter("node-1", lambda: 1.0)
    translator = dialect.translate(meter, "r1", asked)
    first = CREATED if dialect.upstream_path == "/v1/responses" else CHUNK
    out = translator.feed(first)
    assert out
    return translator, out


def check_end(events: list[tuple[str, Any]], error: CortexError, dialect: Dialect) -> None:
    name, told = events[0]
    if dialect.path == "/v1/messages":
        assert (name, len(events)) == ("error", 1)
        check_envelope(told, error, dialect.path)
    elif dialect.path == "/v1/responses":
        assert (name, told["type"]) == ("error", "error")
        assert (told["code"], told["message"]) == (error.code, error.message)
        assert {"param", "sequence_number"} <= told.keys()
        rest = [later for later, _ in events[1:]]
        assert rest == (["response.failed"] if isinstance(dialect, ResponsesByChat) else [])
    else:
        assert name == ""
        check_envelope(told, error, dialect.path)
        assert events[1:] == [("", "[DONE]")]


DIALECTS: list[Dialect] = [*(build_dialects()[path] for path in STREAMED), ResponsesByChat()]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_what_breaks_a_stream(kind: type[CortexError], dialect: Dialect) -> None:
    translator, _ = open_stream(dialect)
    check_end(read_events(translator.fail(make(kind))), make(kind), dialect)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_what_a_neuron_ends_a_stream_in(kind: type[CortexError], dialect: Dialect) -> None:
    error = make(kind)
    translator, _ = open_stream(dialect)
    if dialect.upstream_path == "/v1/responses":
        fields = {"type": "error", "code": error.code, "message": error.message, "param": None}
        data = json.dumps({**fields, "sequence_number": 1}).encode()
        raw = b"event: error\ndata: " + data + b"\n\n"
    else:
        raw = b"data: " + errors.write_openai(error) + b"\n\ndata: [DONE]\n\n"
    check_end(read_events(translator.feed(raw) + translator.close()), error, dialect)


def test_a_stream_cut_in_the_middle_of_an_event_is_not_glued_to_its_error() -> None:
    for dialect in DIALECTS:
        translator, _ = open_stream(dialect)
        error = errors.EngineDiedError(model="m", reason="killed")
        half = translator.feed(b'data: {"id":"1","choices":[{"ind')
        check_end(read_events(half + translator.fail(error)), error, dialect)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_what_ends_a_stream_that_was_held_before_its_answer_began(
    kind: type[CortexError], dialect: Dialect
) -> None:
    asked = dialect.read(BODIES[dialect.path])
    passing = dialect.translate(dialect.meter("gateway", lambda: 1.0), "r1", asked)
    events = read_events(passing.fail(make(kind)))
    while events[0][0] in ("response.created", "response.in_progress"):  # it has to begin first
        events.pop(0)
    check_end(events, make(kind), dialect)


ECHO = [Model(id="m", harness="echo")]
# Where an error has an event of its own name, after which nothing comes.
NAMED_EVENTS = ("/v1/messages", "/v1/responses")
REFUSED = errors.LoadRefusedError(
    model="m", load_kind="corrupt_weights", reason="a file is cut", suggestion="Fetch it again."
)


def loading(fake: Any, gate: asyncio.Event) -> Any:
    """A neuron whose loads fail, once the gate is open."""
    neuron = fake()

    async def load(body: Any) -> None:
        await gate.wait()
        raise REFUSED

    neuron.load = load
    return neuron


@pytest.mark.parametrize("path", [path for path in BODIES if path != "/v1/messages/count_tokens"])
async def test_a_held_request_whose_headers_are_not_out_gets_a_clean_status(
    fake: Any, start: Any, path: str
) -> None:
    gate = asyncio.Event()
    gate.set()
    async with start(loading(fake, gate), models=ECHO) as fleet:
        answer = await fleet.ask(path=path, body=BODIES[path], headers=REQUEST)
    told = answer.json["error"]
    assert (answer.status, told["code"], told["load_kind"]) == (502, "load_failed", "corrupt_weights")  # fmt: skip
    assert answer.header(b"retry-after") is None
    assert answer.header(b"content-type") == b"application/json"
    assert answer.json.get("type") == ("error" if is_anthropic(path) else None)


@pytest.mark.parametrize("path", [path for path in BODIES if path not in STREAMED])
async def test_a_request_that_no_stream_answers_is_held_without_headers(
    fake: Any, start: Any, path: str
) -> None:
    gate = asyncio.Event()
    body = json.dumps({**json.loads(BODIES[path]), "stream": True}).encode()
    soon = {"commit_after_s": 0, "keepalive_s": 0.01}
    async with start(loading(fake, gate), models=ECHO, loading=soon) as fleet:
        asking = asyncio.create_task(fleet.ask(path=path, body=body, headers=REQUEST))
        await asyncio.sleep(0.05)
        gate.set()
        answer = await asking
    assert answer.status in (502, 529)
    assert answer.header(b"content-type") == b"application/json"
    assert answer.json["error"]["code"] in ("load_failed", "model_loading")


@pytest.mark.parametrize("path", STREAMED)
async def test_a_held_stream_whose_headers_are_out_ends_in_its_dialects_error(
    fake: Any, start: Any, path: str
) -> None:
    gate = asyncio.Event()

    def note(message: Any) -> None:
        if message["type"] == "http.response.body":
            gate.set()

    soon = {"commit_after_s": 0, "keepalive_s": 0.01}
    async with start(loading(fake, gate), models=ECHO, loading=soon) as fleet:
        answer = await fleet.ask(path=path, body=BODIES[path], headers=REQUEST, on_message=note)
    assert answer.status == 200
    assert answer.header(b"content-type") == b"text/event-stream"
    raw = answer.body.split(b"\n\n")
    events = read_events(b"\n\n".join(e for e in raw if not e.startswith((b":", b"event: ping"))))
    name, told = events[0]
    body = told if path == "/v1/responses" else told["error"]
    assert (name, body["code"]) == ("error" if path in NAMED_EVENTS else "", "load_failed")
    assert [later for later, _ in events[1:]] == ([] if path in NAMED_EVENTS else [""])


class Breaking:
    """A neuron whose connections break in the middle of its answers."""

    def __init__(self, neuron: Any) -> None:
        self._neuron = neuron

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] == "GET":
            await self._neuron(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": JSON})
        await send({"type": "http.response.body", "body": b'{"id":"x","', "more_body": True})
        raise ConnectionError


@pytest.mark.parametrize("path", BODIES)
async def test_a_neuron_that_breaks_off_in_the_middle_of_a_whole_answer(
    fake: Any, start: Any, path: str
) -> None:
    async with start(Breaking(fake(make_state("m")))) as fleet:
        answer = await fleet.ask(path=path, body=BODIES[path], headers=REQUEST)
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_connection_error")
    assert answer.header(b"retry-after") is not None
    assert answer.json.get("type") == ("error" if is_anthropic(path) else None)


@pytest.mark.parametrize("path", [path for path in BODIES if is_anthropic(path)])
async def test_a_neuron_whose_answer_cannot_be_translated(fake: Any, start: Any, path: str) -> None:
    neuron = fake(make_state("m"))
    neuron.answer = lambda n: (200, JSON, [b"<html>"])
    async with start(neuron) as fleet:
        answer = await fleet.ask(path=path, body=BODIES[path], headers=REQUEST)
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_protocol_error")
