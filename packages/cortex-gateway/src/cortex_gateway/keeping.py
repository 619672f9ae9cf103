# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps clients of streams from giving up while their requests are held: headers after a while, then a sign of life each few seconds."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_never

from cortex_core.http.exchange import ClientGoneError
from cortex_core.node import Progress
from cortex_gateway.config import LoadingSettings
from cortex_gateway.fleet import Fleet
from cortex_gateway.routing.plan import Load, Queue, Serve, Wait, Wake
from cortex_gateway.turn import Turn

Held = Wait | Queue | Wake | Load | Serve

_NO_WORD = re.compile(r"[^A-Za-z0-9_]+")


class Keeper:
    """Keeps those who wait.

    Args:
        fleet: knows how far a load is.
        settings: when headers go out, and how often a sign of life does.
    """

    def __init__(self, fleet: Fleet, settings: LoadingSettings) -> None:
        self._fleet = fleet
        self._commit_after_s = settings.commit_after_s
        self._keepalive_s = settings.keepalive_s

    @asynccontextmanager
    async def beside(self, turn: Turn, served: Serve) -> AsyncIterator[None]:
        """Do so while a node is asked, and has said nothing: it reads a long prompt, or lets the request wait its turn."""
        if not _wants_signs(turn):
            yield
            return
        # A task only for who waits that long: most do not.
        tasks: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        due_s = max(0.0, self._next_s(turn) - time.monotonic())
        timer = loop.call_later(due_s, lambda: tasks.add(loop.create_task(self.run(turn, served))))
        try:
            yield
        finally:
            timer.cancel()
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def run(self, turn: Turn, held_by: Held) -> None:
        """Write to the client until cancelled; return at once where it wants no stream, or when it has left."""
        if not _wants_signs(turn):
            return
        ping = turn.dialect.ping or b""
        try:
            while True:
                await asyncio.sleep(self._next_s(turn) - time.monotonic())
                turn.kept_s = time.monotonic()
                if not turn.is_open:
                    await turn.open(held_by if isinstance(held_by, Serve) else None)
                await turn.exchange.write(write_comment(self._progress(held_by)) + ping)
        except ClientGoneError:  # who serves it is told so too
            return

    def _next_s(self, turn: Turn) -> float:
        """When the next sign is due, monotonic seconds."""
        if turn.kept_s is not None:
            return turn.kept_s + self._keepalive_s
        return turn.began_s + self._commit_after_s

    def _progress(self, held_by: Held) -> Progress:
        match held_by:
            case Serve():
                return Progress(phase="waiting")
            case Queue():
                return Progress(phase="queued")
            case Wake():
                state = self._fleet.node(held_by.node).state(held_by.model_id)
                return Progress(phase="waking", eta_s=state.wake_s if state else None)
            case Load() | Wait():
                model_id = held_by.place[1] if isinstance(held_by, Load) else held_by.model_id
                state = self._fleet.node(held_by.node).state(model_id)
                told = state.progress if state else None
                # Before the neuron tells of it, what the last one took there.
                last_s = self._fleet.takes_s((held_by.node, model_id), "load")
                return told or Progress(phase="loading", eta_s=last_s)
            case _:
                assert_never(held_by)


def _wants_signs(turn: Turn) -> bool:
    """Whether its answer is a stream, which may have comments."""
    return bool(turn.asked.stream) and turn.dialect.ping is not None


def write_comment(progress: Progress) -> bytes:
    """How far it is, as a comment of Server-Sent Events, which every client passes over."""
    words = [f"phase={_NO_WORD.sub('_', progress.phase)}"]
    if progress.ratio is not None:
        words.append(f"ratio={progress.ratio:.2f}")
    if progress.eta_s is not None:
        words.append(f"eta_s={progress.eta_s:.0f}")
    return f": {' '.join(words)}\n\n".encode()
