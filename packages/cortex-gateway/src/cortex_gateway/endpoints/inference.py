# SPDX-License-Identifier: GPL-3.0-or-later
"""The routes of the dialects: read the request, find its place, send it there, relay the answer."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from cortex_core import openai
from cortex_core.errors import (
    ClientError,
    CortexError,
    InvalidRequestBodyError,
    MissingModelFieldError,
    ShuttingDownError,
    UpstreamConnectionError,
    UpstreamProtocolError,
)
from cortex_core.http.client import Client, Reply, read_all
from cortex_core.http.exchange import Exchange
from cortex_core.http.relay import relay
from cortex_gateway.config import Config
from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.verbatim import NO_ROUTE, lacks_route
from cortex_gateway.dispatcher import Dispatcher
from cortex_gateway.fleet import Fleet
from cortex_gateway.metrics import Done, Metrics
from cortex_gateway.routing.plan import Serve
from cortex_gateway.turn import Turn
from cortex_gateway.usage import Meter

# A name is repeated in answers and logs, so it has a bound; no model id comes near it.
MAX_NAME = 512
# A whole answer is one silence, from its first token to its last: what bounds a pause in a stream would cut it off.
WHOLE_IDLE_FACTOR = 12
# The node has no place for the request now; another may.
_REFUSING = (429, 503)


class Inference:
    """Serves the dialects' routes.

    Args:
        fleet: the owner of the in-flight counts.
        dispatcher: finds each request its place.
        clients: one per node.
        metrics: told of each request once, at its end.
        config: idle timeout and default model.
        dialects: by path.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        clients: Mapping[str, Client],
        metrics: Metrics,
        config: Config,
        dialects: Mapping[str, Dialect],
    ) -> None:
        self._dialects = dialects
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._clients = clients
        self._metrics = metrics
        self._idle_timeout_s = config.gateway.idle_timeout_s
        self._default_model = config.default_model
        self._running: set[Turn] = set()

    async def infer(self, exchange: Exchange, body: bytes) -> None:
        """Answer one request. Raises CortexError where the answer has not begun."""
        turn = self._read(exchange, body)
        try:
            await self._place_and_answer(turn)
        except CortexError as error:
            if not turn.is_open:
                raise
            await self._end_open(turn, error)

    async def _place_and_answer(self, turn: Turn) -> None:
        served = await self._dispatcher.place(turn)
        try:
            async with asyncio.timeout(None) as turn.limit:
                await self._answer(turn, served)
        except TimeoutError:
            if not turn.was_cut:
                raise
            await _end_cut(turn)

    async def _end_open(self, turn: Turn, error: CortexError) -> None:
        """Tell an error in a stream whose headers have gone out, and nothing else."""
        turn.exchange.notes.update(error_code=error.code, reason=error.message)
        if "node" not in turn.exchange.notes:
            self._metrics.note_rejection(error.code)
        meter = turn.dialect.meter("gateway", time.monotonic)
        passing = turn.dialect.translate(meter, turn.exchange.request_id, turn.asked)
        await turn.exchange.end(passing.fail(error))

    def cut(self) -> None:
        """End every answer that is still running, in an error that its client can read."""
        for turn in self._running:
            turn.cut()

    def note_end(self, exchange: Exchange, error: CortexError | None) -> None:
        """Told by the front of each request: one that was refused before it had a node is a rejection."""
        if error is not None and "node" not in exchange.notes:
            self._metrics.note_rejection(error.code)

    def _read(self, exchange: Exchange, body: bytes) -> Turn:
        dialect = self._dialects[exchange.path]
        try:
            asked = dialect.read(body)
        except MissingModelFieldError:
            if self._default_model is None:
                raise
            body = openai.rename_model(body, self._default_model)
            asked = dialect.read(body)
        if len(asked.model or "") > MAX_NAME:
            raise InvalidRequestBodyError(
                reason=f"`model` has more than {MAX_NAME} characters", param="model"
            )
        for rule in dialect.notes(asked).hygiene:
            self._metrics.note_hygiene(rule)
        return Turn(exchange, dialect, asked, body)

    async def _answer(self, turn: Turn, served: Serve) -> None:
        self._running.add(turn)
        try:
            place: Serve | None = served
            while place is not None:  # once more elsewhere, and once more in other words
                place = await self._serve(turn, place)
        finally:
            self._running.discard(turn)

    async def _serve(self, turn: Turn, served: Serve) -> Serve | None:
        """Ask one node, and count that. Returns where to ask now; None: the client has its answer."""
        self._dispatcher.note_served(turn, served)
        meter = turn.dialect.meter(served.node, time.monotonic)
        other: Serve | None = None
        has_ended = False  # else the client left, or it was cut
        try:
            with self._fleet.serving(served.node, served.model_id, time.monotonic):
                other = await self._ask(turn, served, meter)
            has_ended = True
        except CortexError as error:
            # What a translation finds wrong with a request is none of ours.
            if not isinstance(error, ClientError):
                meter.error_code = error.code
            has_ended = True
            raise
        finally:
            if other is None:
                self._note_done(turn, served, meter, has_ended=has_ended)
        return other

    async def _ask(self, turn: Turn, served: Serve, meter: Meter) -> Serve | None:
        overhead_s = turn.overhead_s
        try:
            async with self._open(turn, served) as reply:
                if reply.status in _REFUSING:
                    reason = f"it answered {reply.status}"
                    if other := self._dispatcher.elsewhere(turn, served, reason):
                        return other
                if reply.status in NO_ROUTE and (dialect := turn.dialect.without_route):
                    body = await read_all(reply)
                    if lacks_route(reply.status, body):
                        turn.speak(dialect)
                        return served
                    reply = _Whole(reply, body)
                self._metrics.note_overhead(overhead_s)
                turn.passing = turn.dialect.translate(meter, turn.exchange.request_id, turn.asked)
                extra = turn.answer_headers(served, overhead_s)
                await relay(turn.exchange, reply, turn.passing, extra)
                turn.is_open = False
        except (UpstreamConnectionError, UpstreamProtocolError) as error:
            if other := self._dispatcher.elsewhere(turn, served, error.message):
                return other
            raise
        return None

    def _open(self, turn: Turn, served: Serve) -> AbstractAsyncContextManager[Reply]:
        return self._clients[served.node].open(
            "POST",
            turn.dialect.upstream_path,
            headers=turn.request_headers(),
            body=turn.dialect.write(turn.body, turn.asked, served.model_id),
            idle_timeout_s=self._idle_timeout_s * (1 if turn.asked.stream else WHOLE_IDLE_FACTOR),
        )

    def _note_done(self, turn: Turn, served: Serve, meter: Meter, *, has_ended: bool) -> None:
        duration_s = time.monotonic() - turn.began_s
        if turn.was_cut:
            meter.error_code = ShuttingDownError.code
        if meter.error_code is not None:  # a stream's error is told inside a 200
            turn.exchange.notes["error_code"] = meter.error_code
        status = turn.exchange.status or 200
        done = Done(
            model=served.model,
            node=served.node,
            # a client's mistake is told in an error too, and is none of ours
            failed=status >= 500 if status >= 400 else meter.error_code is not None,
            duration_s=duration_s if has_ended else None,
            ttft_s=None if meter.first_s is None else meter.first_s - turn.began_s,
            tokens_per_s=meter.tokens_per_s,
            prompt_tokens=meter.prompt_tokens,
            completion_tokens=meter.completion_tokens,
        )
        self._metrics.note_done(done)
        turn.exchange.notes.update(_told(done))


class _Whole:
    """An answer that was read to its end already."""

    is_event_stream = False

    def __init__(self, reply: Reply, body: bytes) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._unread = [body]

    async def read(self) -> bytes:
        return self._unread.pop() if self._unread else b""


def _told(done: Done) -> dict[str, float]:
    """What the one log line of the request tells of its cost."""
    told = {
        "ttft_s": None if done.ttft_s is None else round(done.ttft_s, 4),
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
    }
    return {name: value for name, value in told.items() if value is not None}


async def _end_cut(turn: Turn) -> None:
    """Raises ShuttingDownError where the answer has not begun."""
    error = ShuttingDownError(daemon="gateway")
    if turn.exchange.status is None or turn.passing is None:
        raise error
    await turn.exchange.end(turn.passing.fail(error))
