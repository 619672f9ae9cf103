# SPDX-License-Identifier: GPL-3.0-or-later
"""From two starting daemons to the first token through both."""

import asyncio

import click
import msgspec

from cortex_cli.trial.plan import QUESTION, Trial
from cortex_cli.trial.screen import Screen
from cortex_core import sse
from cortex_core.errors import UpstreamConnectionError, UpstreamTimeoutError
from cortex_core.http.client import Client, RefusedError, read_all
from cortex_core.node import Health, ModelState

# A cold engine on a busy laptop takes a minute; beyond this something is stuck.
BRING_UP_S = 300.0
LOOK_S = 0.1
TOKEN_S = 60.0


class TrialFailedError(click.ClickException):
    """The trial did not come up; the message says where it stopped."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


async def bring_up(trial: Trial, screen: Screen, *, token_s: float = TOKEN_S) -> None:
    """Wait until a token has come through gateway and neuron.

    Raises:
        TrialFailedError: the model failed to load, or it took longer than BRING_UP_S.
    """
    try:
        async with asyncio.timeout(BRING_UP_S):
            await _until_loaded(trial, screen)
            await _until_token(trial, screen, token_s)
    except TimeoutError:
        raise TrialFailedError(f"No token came within {BRING_UP_S:.0f} s.") from None


async def _until_loaded(trial: Trial, screen: Screen) -> None:
    neuron = Client(trial.neuron)
    try:
        screen.now("neuron", "starting")
        while True:
            try:
                health = await neuron.ask("GET", "/health", Health)
                states = await neuron.ask("GET", "/models", list[ModelState])
            except (UpstreamConnectionError, UpstreamTimeoutError):
                pass  # not listening yet, or too busy with its engine's start
            else:
                if failed := health.activation.failed:
                    raise TrialFailedError(f"{failed[0].model_id} did not load: {failed[0].error}")
                if any(state.status == "loaded" for state in states):
                    return
                _show(states, screen)
            await asyncio.sleep(LOOK_S)
    finally:
        await neuron.close()


def _show(states: list[ModelState], screen: Screen) -> None:
    for state in states:
        if state.progress:
            screen.now(state.id, state.progress.phase, state.progress.ratio)
        else:
            screen.now(state.id, state.status)


async def _until_token(trial: Trial, screen: Screen, within_s: float) -> None:
    gateway = Client(trial.gateway)
    try:
        screen.now("gateway", "asking for a first token")
        while True:
            try:
                async with asyncio.timeout(within_s):
                    await _ask(gateway, trial)
            except UpstreamConnectionError:
                pass  # not listening yet
            except TimeoutError:
                raise TrialFailedError(
                    f"The first answer took longer than {within_s:g} s."
                ) from None
            except RefusedError as error:
                if error.status != 503:
                    raise TrialFailedError(f"The gateway refused: {error.message}") from None
            else:
                return
            await asyncio.sleep(LOOK_S)
    finally:
        await gateway.close()


async def _ask(gateway: Client, trial: Trial) -> None:
    """Return at the first text of a streamed chat; leaving then ends the request."""
    chat = {
        "model": trial.model,
        "stream": True,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    body = msgspec.json.encode(chat)
    headers = [(b"content-type", b"application/json")]
    splitter = sse.Splitter()
    async with gateway.open("POST", "/v1/chat/completions", headers=headers, body=body) as reply:
        if reply.status != 200:
            raise RefusedError(reply.status, await read_all(reply))
        while part := await reply.read():
            if any(map(_has_text, splitter.feed(part))):
                return
    raise TrialFailedError("The answer ended without a token.")


def _has_text(raw: bytes) -> bool:
    data = sse.read_event(raw).data
    if data is None or data == b"[DONE]":
        return False
    chunk = msgspec.json.decode(data, type=_Chunk)
    return any(choice.delta.content or choice.delta.reasoning_content for choice in chunk.choices)
