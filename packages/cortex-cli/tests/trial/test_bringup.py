# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import io
import json
from typing import Any

import pytest
from rich.console import Console

from cortex_cli.trial.bringup import TrialFailedError, bring_up
from cortex_cli.trial.plan import Trial
from cortex_cli.trial.screen import Screen
from cortex_core.http.exchange import Receive, Scope, Send
from cortex_core.testing import serving

LOADING = {
    "id": "helexa/demo",
    "harness": "vllm",
    "status": "loading",
    "progress": {"phase": "warming_up", "ratio": 0.5},
}
LOADED = {"id": "helexa/demo", "harness": "vllm", "status": "loaded"}
ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
TEXT = b'data: {"choices": [{"delta": {"content": "cortex"}}]}\n\n'
BUSY = (503, b'{"error": {"message": "loading", "code": "model_loading"}}')


class Daemons:
    """Neuron and gateway in one: answers a list in order for each path, the last one for ever."""

    def __init__(self, **answers: list[tuple[int, bytes]]) -> None:
        self.answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self.answers[scope["path"].rpartition("/")[2]]
        status, body = left.pop(0) if len(left) > 1 else left[0]
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def said(*values: Any) -> list[tuple[int, bytes]]:
    return [(200, json.dumps(value).encode()) for value in values]


async def try_out(**answers: list[tuple[int, bytes]]) -> str:
    """What a screen that is no terminal shows, the times left out."""
    out = io.StringIO()
    complete = {
        "health": said({"uptime_secs": 1}),
        "models": said([LOADED]),
        "completions": [(200, ROLE + TEXT)],
    }
    async with serving(Daemons(**{**complete, **answers})) as endpoint:
        port = int(endpoint.rpartition(":")[2])
        await bring_up(Trial(gateway_port=port, neuron_port=port), Screen(Console(file=out)))
    return "\n".join(line.partition(" (")[0] for line in out.getvalue().splitlines())


async def test_each_phase_is_shown_once() -> None:
    shown = await try_out(models=said([], [LOADING], [LOADING], [LOADED]))
    assert shown == "neuron: starting\nhelexa/demo: warming up\ngateway: asking for a first token"


async def test_a_model_that_does_not_load_is_told_with_its_reason() -> None:
    failed = {
        "uptime_secs": 1,
        "activation": {"failed": [{"model_id": "helexa/demo", "error": "no vllm here"}]},
    }
    with pytest.raises(TrialFailedError, match="helexa/demo did not load: no vllm here"):
        await try_out(health=said(failed))


async def test_a_gateway_that_is_not_ready_is_asked_again() -> None:
    await try_out(completions=[BUSY, BUSY, (200, ROLE + TEXT)])


async def test_an_answer_that_does_not_come_is_told_with_its_own_limit() -> None:
    class Silent(Daemons):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"].endswith("completions"):
                await asyncio.Event().wait()
            await super().__call__(scope, receive, send)

    daemons = Silent(health=said({"uptime_secs": 1}), models=said([LOADED]))
    async with serving(daemons) as endpoint:
        port = int(endpoint.rpartition(":")[2])
        trial, screen = (
            Trial(gateway_port=port, neuron_port=port),
            Screen(Console(file=io.StringIO())),
        )
        with pytest.raises(TrialFailedError, match=r"The first answer took longer than 0\.05 s"):
            await bring_up(trial, screen, token_s=0.05)


async def test_a_refusal_ends_the_trial() -> None:
    with pytest.raises(TrialFailedError, match="The gateway refused: who are you"):
        await try_out(completions=[(401, b'{"error": {"message": "who are you"}}')])


async def test_an_answer_without_a_token_is_none() -> None:
    with pytest.raises(TrialFailedError, match="ended without a token"):
        await try_out(completions=[(200, ROLE + b"data: [DONE]\n\n")])
