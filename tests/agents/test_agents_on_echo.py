# SPDX-License-Identifier: GPL-3.0-or-later
"""Claude Code and Codex, headless, against a gateway before a neuron: its own Responses, a cold load, a run that is ended."""

import asyncio
import signal
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PLAIN = "echo/plain"
CALLS = "echo/calls?tools=1"
COLD = ("echo/cold-a?load_s=1.5", "echo/cold-b?load_s=1.5")
SLOW = ("echo/slow-a?tokens=5000&token_s=0.05", "echo/slow-b?tokens=5000&token_s=0.05")
MODELS = (PLAIN, CALLS, *COLD, *SLOW)
CATALOGUE = "".join(f'[[models]]\nid = "{model}"\nharness = "echo"\n' for model in MODELS)
# What is not asked for by name is small talk of theirs. A cold load is to be held with signs of life.
CONFIG = f'default_model = "{PLAIN}"\n[loading]\ncommit_after_s = 0.3\nkeepalive_s = 0.3\n'
SAID = "the-tool-has-run"
TOLD = "one two three"


@pytest.fixture
async def served(fleet: Any) -> tuple[Any, Any]:
    neuron = await fleet.neuron()
    return neuron, await fleet.gateway(neuron, models=CATALOGUE, config=CONFIG)


async def test_codex_calls_a_tool_through_the_neuron_s_own_responses(
    served: Any, agents: Any
) -> None:
    neuron, gateway = served
    # The engine calls the first tool, which is the shell, with what it was told.
    said = await agents.codex(gateway, f"echo {SAID}", model=CALLS)
    assert f"Output:\n{SAID}" in said
    assert neuron.log.count("/v1/responses") == 2
    assert "/v1/chat/completions" not in neuron.log


async def test_a_cold_load_is_waited_for(served: Any, agents: Any) -> None:
    _, gateway = served
    answer, said = await asyncio.gather(
        agents.claude(gateway, TOLD, "--model", COLD[0]), agents.codex(gateway, TOLD, model=COLD[1])
    )
    assert not answer["is_error"]
    assert TOLD in answer["result"]
    assert TOLD in said


async def test_who_is_ended_frees_the_engine(served: Any, agents: Any) -> None:
    neuron, gateway = served
    claude = agents.claude_command(gateway, TOLD, "--model", SLOW[0])
    codex = agents.codex_command(gateway, TOLD, model=SLOW[1])

    def runs(health: Any) -> set[str]:
        return {model["id"] for model in health["models"] if model["running"]}

    async with agents.running(claude) as first, agents.running(codex) as second:
        await neuron.until("/health", lambda health: runs(health) >= set(SLOW), 20)
        first.send_signal(signal.SIGINT)
        second.send_signal(signal.SIGINT)
        await neuron.until("/health", lambda health: not runs(health))
