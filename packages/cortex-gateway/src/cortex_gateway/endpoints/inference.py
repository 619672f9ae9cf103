# SPDX-License-Identifier: GPL-3.0-or-later
"""The routes of the dialects: read the request, find its place, send it there, relay the answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from enum import Enum

from cortex_core import openai
from cortex_core.errors import (
    ClientError,
    CortexError,
    FleetError,
    InvalidRequestBodyError,
    MissingModelFieldError,
    NoHealthyNodeError,
    ShuttingDownError,
    UpstreamConnectionError,
    UpstreamProtocolError,
)
from cortex_core.http.client import Client, RefusedError, Reply, Whole, read_all
from cortex_core.http.exchange import Exchange
from cortex_core.http.relay import relay, retell
from cortex_gateway.config import Config
from cortex_gateway.dialects.dialect import Dialect, Translator
from cortex_gateway.dialects.verbatim import NO_ROUTE, lacks_route
from cortex_gateway.dispatcher import Dispatcher
from cortex_gateway.endpoints import counting
from cortex_gateway.fleet import Fleet
from cortex_gateway.journal import Journal
from cortex_gateway.keeping import Keeper
from cortex_gateway.metrics import Done, Metrics
from cortex_gateway.renaming import Renamed
from cortex_gateway.routing.plan import Serve
from cortex_gateway.telling import telling
from cortex_gateway.turn import Turn
from cortex_gateway.usage import Meter

# A name is repeated in answers and logs, so it has a bound; no model id comes near it.
MAX_NAME = 512
# A whole answer is one silence, from its first token to its last: what bounds a pause in a stream would cut it off.
WHOLE_IDLE_FACTOR = 12
# The node has no place for the request now; another may.
_REFUSING = (429, 503, 401)
# It lost the request, as when its engine died under it.
_LOSING = (502,)
_PASSED_ON = (*_REFUSING, *_LOSING, *NO_ROUTE)
# It has not the model, which we did not know, or not the path.
GONE = 404
# No fault of the client's: its credentials never go there, ours do.
REFUSES_US = 401


class _Anew(Enum):
    """Find the request a place anew: another model serves it."""

    ANEW = "anew"


class Inference:
    """Serves the dialects' routes.

    Args:
        fleet: the owner of the in-flight counts.
        dispatcher: finds each request its place.
        clients: one per node.
        metrics: told of each request once, at its end.
        config: idle timeout and default model.
        dialects: by path.
        journal: keeps what becomes of each request.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        clients: Mapping[str, Client],
        metrics: Metrics,
        config: Config,
        dialects: Mapping[str, Dialect],
        journal: Journal,
    ) -> None:
        self._journal = journal
        self._dialects = dialects
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._clients = clients
        self._metrics = metrics
        self._idle_timeout_s = config.gateway.idle_timeout_s
        self._default_model = config.default_model
        self._keeper = Keeper(fleet, config.loading)
        self._running: set[Turn] = set()

    async def infer(self, exchange: Exchange, body: bytes) -> None:
        """Answer one request. Raises CortexError where the answer has not begun."""
        turn = self._read(exchange, body)
        with telling(self._journal, turn):
            try:
                await self._place_and_answer(turn)
            except CortexError as error:
                if not turn.is_open:
                    raise
                await self._end_open(turn, error)

    async def _place_and_answer(self, turn: Turn) -> None:
        try:
            served = await self._dispatcher.place(turn)
        except CortexError:
            if turn.dialect.may_load or not await self._count(turn):
                raise
            return
        try:
            async with asyncio.timeout(None) as turn.limit:
                await self._answer(turn, served)
        except TimeoutError:
            if not turn.was_cut:
                raise
            await _end_cut(turn)

    async def _count(self, turn: Turn) -> bool:
        """Have a node count by the files of a model that is not up; False: none can now."""
        found = self._dispatcher.find_counters(turn)
        if found is None:
            return False
        overhead_s = turn.overhead_s
        told = await counting.ask_each(
            self._clients,
            found,
            turn.request_headers(),
            lambda served: turn.dialect.write(turn.body, turn.asked, served.model_id),
        )
        if told is None:
            return False
        served, counted = told
        self._dispatcher.note_served(turn, served)
        meter = turn.dialect.meter(served.node, time.monotonic)
        passing = turn.dialect.translate(meter, turn.exchange.request_id, turn.asked)
        status, out = passing.whole(counted.status, counted.body)
        extra = turn.answer_headers(served, overhead_s, counted.headers)
        await turn.exchange.answer(status, out, [*counted.headers, *extra])
        self._note_done(turn, served, meter, has_ended=True)
        return True

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

    def lose(self, node: str) -> None:
        """A node is down: who has heard nothing from it yet is asked for elsewhere. Answers that come go on."""
        for turn in self._running:
            if turn.unheard is not None and turn.exchange.notes["node"] == node:
                turn.unheard.reschedule(0.0)

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
            place: Serve | _Anew | None = served
            while place is not None:  # once more elsewhere, in other words, or by another model
                if isinstance(place, _Anew):
                    place = await self._dispatcher.place(turn)
                place = await self._serve(turn, place)
        finally:
            self._running.discard(turn)

    async def _serve(self, turn: Turn, served: Serve) -> Serve | _Anew | None:
        """Ask one node, and count that. Returns where to ask now; None: the client has its answer."""
        self._dispatcher.note_served(turn, served)
        meter = turn.dialect.meter(served.node, time.monotonic)
        other: Serve | _Anew | None = None
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

    async def _ask(self, turn: Turn, served: Serve, meter: Meter) -> Serve | _Anew | None:
        overhead_s = turn.overhead_s
        try:
            async with self._opened(turn, served) as reply:
                if reply.status in _PASSED_ON:
                    body = await read_all(reply)
                    if other := await self._pass_on(turn, served, reply, body):
                        return other
                    reply = Whole(reply, body)
                self._metrics.note_overhead(overhead_s)
                turn.passing = _translate(turn, served, meter)
                extra = turn.answer_headers(served, overhead_s, reply.headers)
                await relay(turn.exchange, reply, turn.passing, extra)
                turn.is_open = False
        except (FleetError, NoHealthyNodeError) as error:
            lost = isinstance(error, UpstreamConnectionError | UpstreamProtocolError)
            if lost and (
                other := self._dispatcher.elsewhere(turn, served, error.message, lost=True)
            ):
                return other
            if self._dispatcher.fall_back(turn, error):
                return _Anew.ANEW
            raise
        return None

    async def _pass_on(
        self, turn: Turn, served: Serve, reply: Reply, body: bytes
    ) -> Serve | _Anew | None:
        """Where to ask after such an answer; None: nowhere, it is the client's. Raises NoHealthyNodeError: it is not."""
        dispatcher, status = self._dispatcher, reply.status
        if status in NO_ROUTE and lacks_route(status, body):
            if (dialect := turn.dialect.without_route) is None:
                return None
            turn.speak(dialect)
            return served
        if status in NO_ROUTE:  # it speaks of the model
            is_new = status == GONE and served.node not in turn.passed
            return (await dispatcher.without(turn, served) or _Anew.ANEW) if is_new else None
        lost = status in _LOSING
        if other := dispatcher.elsewhere(turn, served, f"it answered {status}", lost=lost):
            return other
        if dispatcher.fall_back(turn, retell(RefusedError(status, body, reply.headers))):
            return _Anew.ANEW
        if status == REFUSES_US:
            reason = f"{served.node}: it refuses our secret"
            raise NoHealthyNodeError(model=served.model, reason=reason)
        return None

    @asynccontextmanager
    async def _opened(self, turn: Turn, served: Serve) -> AsyncIterator[Reply]:
        """Its answer, once that has begun; a stream has when its first bytes are there, since a head alone says nothing.

        Raises:
            UpstreamConnectionError: the node was lost before.
            FleetError: as `Client.open` and `Reply.read`; UpstreamProtocolError also where a stream has nothing.
        """
        async with AsyncExitStack() as stack:
            try:
                async with (
                    self._keeper.beside(turn, served),
                    asyncio.timeout(None) as turn.unheard,
                ):
                    reply = await stack.enter_async_context(self._open(turn, served))
                    if reply.is_event_stream:
                        reply = _Begun(reply, await _read_first(reply, served.node))
            except TimeoutError:
                reason = "the node went down before it answered"
                raise UpstreamConnectionError(upstream=served.node, reason=reason) from None
            finally:
                turn.unheard = None
            yield reply

    def _open(self, turn: Turn, served: Serve) -> AbstractAsyncContextManager[Reply]:
        idle_s = self._idle_timeout_s * (1 if turn.asked.stream else WHOLE_IDLE_FACTOR)
        told = self._fleet.node(served.node).activity(served.model_id)
        return self._clients[served.node].open(
            "POST",
            turn.dialect.upstream_path,
            headers=turn.request_headers(),
            body=turn.dialect.write(turn.body, turn.asked, served.asked_id),
            idle_timeout_s=idle_s,
            # its silence begins when it has let the request in
            head_timeout_s=idle_s + (told.max_wait_s or 0.0),
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


def _translate(turn: Turn, served: Serve, meter: Meter) -> Translator:
    passing = turn.dialect.translate(meter, turn.exchange.request_id, turn.asked)
    if served.asked_id == served.told_id:
        return passing
    return Renamed(passing, served.asked_id, served.told_id)


class _Begun:
    """A stream whose first bytes were waited for."""

    is_event_stream = True

    def __init__(self, reply: Reply, first: bytes) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.read = self._read_first
        self._first = first
        self._reply = reply

    async def _read_first(self) -> bytes:
        # Nothing stands in between from now on: it is called for each chunk.
        self.read = self._reply.read
        return self._first


async def _read_first(reply: Reply, node: str) -> bytes:
    first = await reply.read()
    if not first:
        raise UpstreamProtocolError(upstream=node, reason="the stream ended before it began")
    return first


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
