# SPDX-License-Identifier: GPL-3.0-or-later
"""The echo engine: no weights, no devices; answers from the prompt, and behaves as its model id asks.

echo            this: waiting, counting, sending
echo_options    what the model id asks for           pure
echo_answer     what the answer is                   pure
echo_wire       how it is written                    pure
echo_responses  both, for the Responses API          pure
echo_pooling    both, for vectors, scores and tokens pure
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from cortex_core import openai, wire
from cortex_core.errors import CortexError
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Handler
from cortex_core.node import Limits
from neuron.host.engine import PoisonedError, Report, StartFailedError
from neuron.host.engines.echo_answer import (
    Answer,
    ChatAsked,
    CompletionAsked,
    plan_chat,
    plan_completion,
)
from neuron.host.engines.echo_options import EchoOptions, OptionsError, read_options
from neuron.host.engines.echo_pooling import EMBEDDER_ROUTES, TOKENIZE, Route
from neuron.host.engines.echo_responses import ResponsesAsked, ResponsesWriter, plan_response
from neuron.host.engines.echo_wire import (
    ChatWriter,
    CompletionWriter,
    Head,
    Writer,
    write_usage_comment,
)
from neuron.host.messages import Activity, Phase, Ready, Start

A = TypeVar("A", ChatAsked, CompletionAsked, ResponsesAsked)

_CHAT = msgspec.json.Decoder(ChatAsked)
_COMPLETION = msgspec.json.Decoder(CompletionAsked)
_RESPONSES = msgspec.json.Decoder(ResponsesAsked)

EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
# How far an answer comes that is to break off.
BREAK_AFTER_TOKENS = 3


class EchoEngine:
    """Answers from the prompt."""

    def __init__(self) -> None:
        self._options = EchoOptions()
        self._model = ""
        self._adapters: frozenset[str] = frozenset()
        self._slots: asyncio.Semaphore | None = None
        self._running = 0
        self._waiting = 0
        self._unsound = False
        # Set until it is to hang.
        self._goes_on = asyncio.Event()
        self._goes_on.set()

    @staticmethod
    def preload(settings: Mapping[str, Any]) -> None:
        """There is nothing that takes long."""

    async def start(self, start: Start, report: Report) -> Ready:
        self._model = start.spec.model_id
        self._adapters = frozenset(start.spec.lora or {})
        try:
            options = self._options = read_options(self._model)
        except OptionsError as error:
            raise StartFailedError("invalid_spec", str(error), error.suggestion) from None
        if options.max_running:
            self._slots = asyncio.Semaphore(options.max_running)
        report(Phase(phase="loading", ratio=0.0))
        await asyncio.sleep(options.load_s)
        if options.fail == "load":
            raise StartFailedError("engine_start_failed", "it was asked to fail, by `fail=load`")
        if options.fail == "start":
            os._exit(0)
        return Ready(
            capabilities=_capabilities(options),
            limits=Limits(context=options.context, output=options.context),
            can_sleep=options.can_sleep,
            max_running=options.max_running,
        )

    def routes(self) -> Mapping[str, Handler]:
        pooled = EMBEDDER_ROUTES if self._options.embeddings else {}
        routes = {path: self._pooled(route) for path, route in pooled.items()}
        routes["/tokenize"] = self._tokenize
        if not self._options.embeddings:
            routes["/v1/chat/completions"] = self._chat
            routes["/v1/completions"] = self._complete
            routes["/v1/responses"] = self._respond
        return routes

    def activity(self) -> Activity:
        return Activity(running=self._running, waiting=self._waiting)

    async def beat(self) -> None:
        await self._goes_on.wait()

    async def probe(self) -> None:
        if self._unsound:
            raise PoisonedError("it was asked to, by `fail=poison`")

    async def sleep(self, level: int) -> None:
        await asyncio.sleep(self._options.sleep_s)
        if self._options.fail == "sleep":
            raise RuntimeError("it was asked to fail, by `fail=sleep`")

    async def wake(self) -> None:
        await asyncio.sleep(self._options.wake_s)
        if self._options.fail == "wake":
            raise RuntimeError("it was asked to fail, by `fail=wake`")

    async def stop(self) -> None:
        """Nothing to end."""

    async def _chat(self, exchange: Exchange, body: bytes) -> None:
        asked = openai.read_body(body, _CHAT)
        await self._answer(exchange, asked, ChatWriter(), plan_chat)

    async def _complete(self, exchange: Exchange, body: bytes) -> None:
        asked = openai.read_body(body, _COMPLETION)
        await self._answer(exchange, asked, CompletionWriter(), plan_completion)

    async def _respond(self, exchange: Exchange, body: bytes) -> None:
        asked = openai.read_body(body, _RESPONSES)
        await self._answer(exchange, asked, ResponsesWriter(), plan_response)

    async def _tokenize(self, exchange: Exchange, body: bytes) -> None:
        self._check_wish()
        head = self._head(TOKENIZE.prefix)
        await exchange.answer(200, TOKENIZE.answer(body, self._options, head))

    def _pooled(self, route: Route) -> Handler:
        async def handle(exchange: Exchange, body: bytes) -> None:
            self._check_wish()
            answer = route.answer(body, self._options, self._head(route.prefix))
            async with self._slot():
                await asyncio.sleep(self._options.ttft_s)
                await exchange.answer(200, answer)

        return handle

    async def _answer(
        self,
        exchange: Exchange,
        asked: A,
        writer: ChatWriter | CompletionWriter | ResponsesWriter,
        plan: Callable[[A, EchoOptions], Answer],
    ) -> None:
        self._check_wish()
        answer = plan(asked, self._options)
        head = self._head(writer.prefix, asked.model)
        async with self._slot():
            if asked.stream:
                await self._stream(exchange, asked, writer, head, answer)
                return
            async for _ in self._paced(writer, head, answer):
                pass
            await exchange.answer(200, writer.whole(head, answer))

    def _check_wish(self) -> None:
        """Whether it is to answer at all."""
        if status := self._options.fail_status:
            raise AskedToFailError(status)

    def _head(self, prefix: str, asked_id: str | None = None) -> Head:
        model = asked_id if asked_id in self._adapters else self._model
        return Head(id=f"{prefix}{secrets.token_hex(12)}", created=int(time.time()), model=model)

    async def _stream(
        self, exchange: Exchange, asked: A, writer: Writer, head: Head, answer: Answer
    ) -> None:
        await exchange.start(200, EVENT_STREAM)
        if opening := writer.open(head):
            await exchange.write(opening)
        async for part in self._paced(writer, head, answer):
            await exchange.write(part)
        last = writer.close(head, answer)
        if asked.stream_options and asked.stream_options.include_usage:
            last += writer.usage(head, answer.usage)
        if writer.ends_in and exchange.header(wire.USAGE.encode()) == b"1":
            last += write_usage_comment(answer.usage)
        await exchange.end(last + writer.ends_in)

    async def _paced(self, writer: Writer, head: Head, answer: Answer) -> AsyncIterator[bytes]:
        """The parts, each when it is due. Due times count from the first, so that delays do not add up."""
        await asyncio.sleep(self._options.ttft_s)
        began_s = time.monotonic()
        for index, part in enumerate(writer.parts(head, answer)):
            if index == BREAK_AFTER_TOKENS:
                await self._break()
            due_s = began_s + index * self._options.token_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            yield part

    async def _break(self) -> None:
        """What is to go wrong in the middle of an answer."""
        match self._options.fail:
            case "stream":
                os._exit(1)
            case "hang":
                self._goes_on.clear()
            case "poison":
                self._unsound = True
        await self._goes_on.wait()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """A place among those that are answered; given back however the answer ends."""
        if self._slots is not None:
            self._waiting += 1
            try:
                await self._slots.acquire()
            finally:
                self._waiting -= 1
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._slots is not None:
                self._slots.release()


class EchoCounter(EchoEngine):
    """Counts tokens without the engine. What a model asks for in its id happens when it is loaded, and not here."""

    async def start(self, start: Start, report: Report) -> Ready:
        self._model = start.spec.model_id
        return Ready()

    def routes(self) -> Mapping[str, Handler]:
        return {"/tokenize": self._tokenize}


class AskedToFailError(CortexError):
    """What a model with `fail=status:…` answers."""

    code = "asked_to_fail"
    says = "This model was asked to answer {answered}, by `fail=status:{answered}`."

    def __init__(self, status: int) -> None:
        busy = status in (429, 503)
        super().__init__(answered=status, retry_after_s=1.0 if busy else None)
        self.status = status  # type: ignore[misc]  # the one error whose status is chosen


def _capabilities(options: EchoOptions) -> list[str]:
    if options.embeddings:
        return ["embeddings"]
    return [
        "text",
        *(["tools"] if options.tools else []),
        *(["reasoning"] if options.reasoning else []),
    ]
