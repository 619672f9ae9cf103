# SPDX-License-Identifier: GPL-3.0-or-later
"""A request's way without vLLM: what an engine that ends says is no answer. The rest is in tests/engine."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cortex_core.http.front import Front
from cortex_core.testing import collect
from neuron.host.engines.vllm_options import Settings
from neuron.host.engines.vllm_serving import CHAT, COMPLETIONS, Serving


class GoneError(Exception):
    """In the place of vLLM's."""


class Engine:
    """Says two pieces, the last of which is why it ended."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.is_closed = False

    async def generate(self, prompt: str) -> AsyncIterator[Any]:
        try:
            for reason in (None, self.reason):
                yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason=reason)])
        finally:
            self.is_closed = True


def make_serving(call: Any, engine: Engine) -> Serving:
    route = SimpleNamespace(known={}, find=lambda _: call, read=lambda fields: fields)
    library: Any = SimpleNamespace(
        ROUTES={CHAT: route, COMPLETIONS: route}, REQUEST_ERRORS=(), EngineDeadError=GoneError
    )
    state = SimpleNamespace(engine_client=engine)
    running = SimpleNamespace(state=state, sees=False, context_tokens=8, died=False, max_running=4)
    return Serving(library, running, "m", None, Settings())


@pytest.mark.parametrize(
    ("has_ended", "status", "code"), [(True, 502, "engine_died"), (False, 500, "internal_error")]
)
async def test_whatever_goes_wrong_while_the_host_ends_is_its_end(
    has_ended: bool, status: int, code: str
) -> None:
    async def call(*_: Any) -> Any:
        if has_ended:
            serving.end()
        raise RuntimeError("cannot schedule new futures after shutdown")

    serving = make_serving(call, Engine("stop"))
    front = Front(daemon="engine", hot=serving.routes(), routes=[])
    answer = await collect(front, "POST", CHAT, body=b"{}")
    assert (answer.status, answer.json["error"]["code"]) == (status, code)


async def test_what_the_engine_ended_by_itself_is_whole() -> None:
    engine = Engine("stop")
    make_serving(None, engine)
    assert [piece.outputs[0].finish_reason async for piece in engine.generate("x")] == [
        None,
        "stop",
    ]


async def test_what_the_engine_broke_off_is_none_and_its_request_is_closed() -> None:
    engine = Engine("abort")
    make_serving(None, engine)
    with pytest.raises(GoneError):
        [piece async for piece in engine.generate("x")]
    assert engine.is_closed


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        (CHAT, {"n": 4}, 502),
        (CHAT, {"n": 5}, 400),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2}, 502),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 3}, 400),
        (COMPLETIONS, {"prompt": [[1], [2], [3], [4], [5]]}, 400),
        (COMPLETIONS, {"prompt": [1, 2, 3, 4, 5]}, 502),  # one prompt, of tokens
        (COMPLETIONS, {"prompt": [], "n": "x"}, 502),  # vLLM's to refuse
    ],
)
async def test_one_request_has_no_more_answers_than_the_engine_writes_at_once(
    path: str, fields: dict[str, Any], status: int
) -> None:
    async def call(*_: Any) -> Any:
        serving.end()

    serving = make_serving(call, Engine("stop"))
    front = Front(daemon="engine", hot=serving.routes(), routes=[])
    answer = await collect(front, "POST", path, body=msgspec.json.encode(fields))
    assert answer.status == status
    if status == 400:
        error = answer.json["error"]
        assert (error["code"], error["param"]) == ("invalid_request_body", "n")
        assert "the engine writes 4 at once" in error["message"]
