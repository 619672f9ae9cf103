# SPDX-License-Identifier: GPL-3.0-or-later
"""The echo engine: no weights, no devices; answers from the prompt, and behaves as its model id asks.

echo            this: waiting, counting, sending
echo_options    what the model id asks for           pure
echo_answer     what the answer is                   pure
echo_wire       how it is written                    pure
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from cortex_core import openai, sse, wire
from cortex_core.errors import CortexError, InvalidRequestBodyError
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Handler
from cortex_core.node import Limits
from neuron.host.engine import Report, StartFailedError
from neuron.host.engines.echo_answer import (
    Answer,
    ChatAsked,
    CompletionAsked,
    plan_chat,
    plan_completion,
)
from neuron.host.engines.echo_options import EchoOptions, OptionsError, read_options
from neuron.host.engines.echo_wire import (
    ChatWriter,
    CompletionWriter,
    Head,
    Writer,
    write_usage_comment,
)
from neuron.host.messages import Activity, Phase, Ready, Start

A = TypeVar("A", ChatAsked, CompletionAsked)

EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
# How far an answer comes that is to break off.
BREAK_AFTER_TOKENS = 3


class EchoEngine:
    """Answers from the prompt."""

    def __init__(self) -> None:
        self._options = EchoOptions()
        self._model = ""
        self._slots: asyncio.Semaphore | None = None
        self._running = 0
        self._waiting = 0

    async def start(self, start: Start, report: Report) -> Ready:
        self._model = start.spec.model_id
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
            max_running=options.max_running,
        )

    def routes(self) -> Mapping[str, Handler]:
        return {"/v1/chat/completions": self._chat, "/v1/completions": self._complete}

    def activity(self) -> Activity:
        return Activity(running=self._running, waiting=self._waiting)

    async def stop(self) -> None:
        """Nothing to end."""

    async def _chat(self, exchange: Exchange, body: bytes) -> None:
        asked = _read(body, ChatAsked)
        await self._answer(exchange, asked, ChatWriter(), plan_chat)

    async def _complete(self, exchange: Exchange, body: bytes) -> None:
        asked = _read(body, CompletionAsked)
        await self._answer(exchange, asked, CompletionWriter(), plan_completion)

    async def _answer(
        self,
        exchange: Exchange,
        asked: A,
        writer: ChatWriter | CompletionWriter,
        plan: Callable[[A, EchoOptions], Answer],
    ) -> None:
        if status := self._options.fail_status:
            raise AskedToFailError(status)
        answer = plan(asked, self._options)
        head = Head(
            id=f"{writer.prefix}{secrets.token_hex(12)}",
            created=int(time.time()),
            model=self._model,
        )
        async with self._slot():
            if asked.stream:
                await self._stream(exchange, asked, writer, head, answer)
                return
            async for _ in self._paced(writer, head, answer):
                pass
            await exchange.answer(200, writer.whole(head, answer))

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
        if exchange.header(wire.USAGE.encode()) == b"1":
            last += write_usage_comment(answer.usage)
        await exchange.end(last + sse.DONE)

    async def _paced(self, writer: Writer, head: Head, answer: Answer) -> AsyncIterator[bytes]:
        """The parts, each when it is due. Due times count from the first, so that delays do not add up."""
        await asyncio.sleep(self._options.ttft_s)
        began_s = time.monotonic()
        for index, part in enumerate(writer.parts(head, answer)):
            if self._options.fail == "stream" and index == BREAK_AFTER_TOKENS:
                os._exit(1)
            due_s = began_s + index * self._options.token_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            yield part

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


class AskedToFailError(CortexError):
    """What a model with `fail=status:…` answers."""

    code = "asked_to_fail"
    says = "This model was asked to answer {answered}, by `fail=status:{answered}`."

    def __init__(self, status: int) -> None:
        busy = status in (429, 503)
        super().__init__(answered=status, retry_after_s=1.0 if busy else None)
        self.status = status  # type: ignore[misc]  # the one error whose status is chosen


def _capabilities(options: EchoOptions) -> list[str]:
    return [
        "text",
        *(["tools"] if options.tools else []),
        *(["reasoning"] if options.reasoning else []),
    ]


def _read(body: bytes, kind: type[A]) -> A:
    openai.read_asked(body)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequestBodyError(reason=str(error)) from None
