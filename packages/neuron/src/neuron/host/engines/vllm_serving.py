# SPDX-License-Identifier: GPL-3.0-or-later
"""One request's way: bytes, vLLM's request, its serving object, bytes.

A handler is cancelled when its client leaves. The engine's request then ends with it: vLLM aborts on the
cancellation of a whole answer, and on the closing of a stream.
"""

import asyncio
import contextlib
from collections.abc import Callable, Set
from types import ModuleType
from typing import Any

import msgspec

from cortex_core import openai, wire
from cortex_core.errors import CortexError, EngineDiedError, VisionUnsupportedError
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Handler
from cortex_core.http.headers import Headers
from neuron.host.engines import (
    vllm_asked,
    vllm_failures,
    vllm_media,
    vllm_responses,
    vllm_wire,
)
from neuron.host.engines.vllm_asked import Fields, Wish
from neuron.host.engines.vllm_failures import Refusal
from neuron.host.engines.vllm_options import Settings
from neuron.host.engines.vllm_responses import ResponseStream
from neuron.host.engines.vllm_wire import Markers

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = vllm_responses.PATH
TOKENIZE = "/tokenize"
# What is done to the fields of some paths before what is done to all.
_PLANS: dict[str, Callable[[Fields], Fields]] = {
    RESPONSES: lambda fields: vllm_responses.plan_response(vllm_asked.drop_nulls(fields)),
    EMBEDDINGS: lambda fields: vllm_asked.plan_embedding(vllm_asked.drop_nulls(fields)),
    "/v1/score": vllm_asked.drop_nulls,
    "/v1/rerank": vllm_asked.drop_nulls,
    TOKENIZE: vllm_asked.drop_nulls,
}
Stream = vllm_wire.Stream | ResponseStream
_EVENT_STREAM = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"))
_JSON = (b"content-type", b"application/json")
_ENCODE = msgspec.json.Encoder()


class Serving:
    """Serves one model through vLLM's serving objects.

    Args:
        library: the module vllm_library.
        running: its Running.
        markers: around reasoning; None: the model does not think.
        settings: the harness's.
    """

    def __init__(
        self,
        library: ModuleType,
        running: Any,
        model_id: str,
        markers: Markers,
        settings: Settings,
    ) -> None:
        self._library = library
        self._running = running
        self._model_id = model_id
        self._markers = markers
        self._adapters = frozenset(settings.lora)
        self._media_domains = settings.allowed_media_domains
        self._has_ended = False

    def routes(self) -> dict[str, Handler]:
        """Path to handler, for what the model serves."""
        found = {
            path: (route, route.find(self._running.state))
            for path, route in self._library.ROUTES.items()
        }
        return {path: self._build_handler(*row) for path, row in found.items() if row[1]}

    def end(self) -> None:
        """The engine ends: what it says from now on, such as half an answer for a whole one, is no answer any more."""
        self._has_ended = True

    def _build_handler(self, route: Any, call: Any) -> Handler:
        async def handle(exchange: Exchange, body: bytes) -> None:
            fields, wish = self._read(exchange, body, route.names)
            try:
                request = route.read(fields)
                answer = await call(request, None)
            except self._library.REQUEST_ERRORS as error:
                raise self._refused(self._library.read_error(error)) from None
            _end_if_cancelled()
            if self._has_ended:
                raise self._ended()
            if self._library.is_error_answer(answer):
                raise self._refused(self._library.read_error_answer(answer))
            if self._library.is_stream(answer):
                await self._stream(exchange, answer, wish)
            else:
                body_out = self._shape(exchange.path, self._library.read_answer(answer), wish)
                await exchange.answer(200, _ENCODE.encode(body_out), [_JSON, *_told(wish)])

        return handle

    def _read(self, exchange: Exchange, body: bytes, known: Set[str]) -> tuple[Fields, Wish]:
        fields = vllm_asked.read_fields(body)
        if vllm_media.has_image(fields) and not self._running.sees:
            raise VisionUnsupportedError(model=self._model_id)
        vllm_media.check_urls(fields, self._media_domains)
        plan = _PLANS.get(exchange.path)
        others = vllm_responses.name_dropped(fields) if exchange.path == RESPONSES else ()
        dropped = vllm_asked.name_unread(fields, known, others)
        asked, wish = vllm_asked.plan_request(
            plan(fields) if plan else fields,
            self._model_id,
            adapters=self._adapters,
            context_tokens=self._running.context_tokens,
            thinking=vllm_asked.is_yes(exchange.header(wire.INCLUDE_THINKING.encode())),
            usage_comment=exchange.path in {CHAT, COMPLETIONS}
            and vllm_asked.is_yes(exchange.header(wire.USAGE.encode())),
        )
        return asked, wish._replace(dropped=dropped)

    def _ended(self) -> EngineDiedError:
        return EngineDiedError(model=self._model_id, reason="it was ended")

    def _shape(self, path: str, answer: Fields, wish: Wish) -> Fields:
        if path == CHAT:
            return vllm_wire.shape_chat(answer, wish, self._markers)
        if path == RESPONSES:
            return vllm_responses.shape_response(answer, wish.text)
        return vllm_wire.shape_plain(answer)

    async def _stream(self, exchange: Exchange, pieces: Any, wish: Wish) -> None:
        stream = self._build_stream(exchange.path, wish)
        try:
            # Closed whatever happens: that is what aborts the engine's request.
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    if self._has_ended:
                        await _fail(exchange, stream, self._ended())
                        return
                    event = self._library.write_event(piece)
                    if error := self._read_stream_error(event):
                        await _fail(exchange, stream, error)
                        return
                    # Status and headers wait for the first event: until then a failure has a clean status.
                    if exchange.status is None:
                        await exchange.start(200, [*_EVENT_STREAM, *_told(wish)])
                    if out := stream.feed(event):
                        await exchange.write(out)
        except self._library.STREAM_ERRORS as error:
            await _fail(exchange, stream, self._refused(self._library.read_error(error)))
        else:
            await exchange.end()

    def _build_stream(self, path: str, wish: Wish) -> Stream:
        if path == RESPONSES:
            return ResponseStream(wish.text)
        if path == CHAT:
            return vllm_wire.Stream(wish, vllm_wire.ChatDeltas(wish, self._markers))
        return vllm_wire.Stream(wish, lambda chunk: chunk)

    def _read_stream_error(self, event: bytes) -> CortexError | None:
        found = vllm_wire.read_stream_error(event)
        if found is None:
            return None
        refusal = Refusal(
            status=found.get("code") or 500,
            message=found.get("message") or "",
            param=found.get("param"),
            died=self._running.died,
        )
        return self._refused(refusal)

    def _refused(self, refusal: Refusal) -> CortexError:
        return vllm_failures.read_refusal(refusal, self._model_id)


def _told(wish: Wish) -> Headers:
    """What was left out of the request."""
    if not wish.dropped:
        return []
    return [(wire.DROPPED.encode(), ", ".join(wish.dropped).encode())]


def _end_if_cancelled() -> None:
    """A response that was cancelled is answered by vLLM, with an error of its own."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _fail(exchange: Exchange, stream: Stream, error: CortexError) -> None:
    """End a stream in an error: with its status while that can be told, else with an event of its own."""
    if exchange.status is None:
        raise error
    exchange.notes["error_code"] = error.code
    told = (
        stream.fail(error)
        if isinstance(stream, ResponseStream)
        else openai.write_error_events(error)
    )
    await exchange.end(told)
