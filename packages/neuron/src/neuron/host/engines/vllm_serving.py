# SPDX-License-Identifier: GPL-3.0-or-later
"""One request's way: bytes, vLLM's request, its serving object, bytes.

A handler is cancelled when its client leaves. The engine's request then ends with it: vLLM aborts on the
cancellation of a whole answer, and on the closing of a stream.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

import msgspec

from cortex_core import openai, wire
from cortex_core.errors import (
    CortexError,
    EngineDiedError,
    InvalidRequestBodyError,
    VisionUnsupportedError,
)
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
from neuron.host.engines.vllm_asked import Fields, Known, Wish
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
    RESPONSES: vllm_responses.plan_response,
    EMBEDDINGS: vllm_asked.plan_embedding,
}
# Those whose requests may want several answers, and have the usage in a comment.
_GENERATING = frozenset({CHAT, COMPLETIONS})
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
        # One that only counts has no engine.
        if (engine := getattr(running.state, "engine_client", None)) is not None:
            fail_aborted(engine, library.EngineDeadError)

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
            try:
                await answer(exchange, body)
            except Exception:
                if self._has_ended and exchange.status is None:
                    raise self._ended() from None
                raise

        async def answer(exchange: Exchange, body: bytes) -> None:
            fields, wish = self._read(exchange, body, route.known)
            try:
                request = route.read(fields)
                found = await call(request, None)
            except self._library.REQUEST_ERRORS as error:
                raise self._refused(self._library.read_error(error)) from None
            _end_if_cancelled()
            if self._has_ended:
                raise self._ended()
            if self._library.is_error_answer(found):
                raise self._refused(self._library.read_error_answer(found))
            if self._library.is_stream(found):
                await self._stream(exchange, found, wish)
            else:
                body_out = self._shape(exchange.path, self._library.read_answer(found), wish)
                await exchange.answer(200, _ENCODE.encode(body_out), [_JSON, *_told(wish)])

        return handle

    def _read(self, exchange: Exchange, body: bytes, known: Known) -> tuple[Fields, Wish]:
        fields = vllm_asked.drop_nulls(vllm_asked.read_fields(body))
        if vllm_media.has_image(fields) and not self._running.sees:
            raise VisionUnsupportedError(model=self._model_id)
        vllm_media.check_urls(fields, self._media_domains)
        if exchange.path in _GENERATING:
            check_sequences(fields, self._running.max_running)
        plan = _PLANS.get(exchange.path)
        is_response = exchange.path == RESPONSES
        others = vllm_responses.name_dropped(fields) if is_response else ()
        dropped = vllm_asked.name_unread(fields, known, others)
        asked, wish = vllm_asked.plan_request(
            plan(fields) if plan else fields,
            self._model_id,
            adapters=self._adapters,
            context_tokens=self._running.context_tokens,
            thinking=vllm_asked.is_yes(exchange.header(wire.INCLUDE_THINKING.encode())),
            usage_comment=exchange.path in _GENERATING
            and vllm_asked.is_yes(exchange.header(wire.USAGE.encode())),
        )
        told = vllm_responses.read_told(fields) if is_response else None
        return asked, wish._replace(dropped=dropped, told=told)

    def _ended(self) -> EngineDiedError:
        return EngineDiedError(model=self._model_id, reason="it was ended")

    def _shape(self, path: str, answer: Fields, wish: Wish) -> Fields:
        if path == CHAT:
            return vllm_wire.shape_chat(answer, wish, self._markers)
        if path == RESPONSES:
            return vllm_responses.shape_response(answer, wish.told)
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
            return ResponseStream(wish.told)
        if path == CHAT:
            return vllm_wire.Stream(wish, vllm_wire.ChatDeltas(wish, self._markers))
        return vllm_wire.Stream(wish, lambda chunk: chunk)

    def _read_stream_error(self, event: bytes) -> CortexError | None:
        found = vllm_wire.read_stream_error(event)
        if found is None:
            return None
        message = found.get("message") or ""
        refusal = Refusal(
            status=found.get("code") or 500,
            message=message,
            param=found.get("param"),
            # Of one that was told to end, vLLM may not know yet.
            died=self._running.died or message == str(self._library.EngineDeadError()),
        )
        return self._refused(refusal)

    def _refused(self, refusal: Refusal) -> CortexError:
        return vllm_failures.read_refusal(refusal, self._model_id)


def check_sequences(fields: Fields, most: int) -> None:
    """Refuse a request that wants more answers than are written at once: it has one place, and would take all.

    Raises:
        InvalidRequestBodyError: as said. The client's fault.
    """
    prompts, n = fields.get("prompt"), fields.get("n")
    wanted = n if isinstance(n, int) else 1
    if isinstance(prompts, list) and prompts and isinstance(prompts[0], str | list):
        wanted *= len(prompts)
    if wanted > most:
        reason = f"prompts and `n` make {wanted} answers, and the engine writes {most} at once"
        raise InvalidRequestBodyError(reason=reason, param="n")


def fail_aborted(engine: Any, error: Callable[[], Exception]) -> None:
    """Have the engine raise `error` where EngineCore broke a request off: that is no answer, though vLLM takes it for one."""
    generate = engine.generate

    async def generate_whole(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with contextlib.aclosing(generate(*args, **kwargs)) as outputs:
            async for output in outputs:
                if any(part.finish_reason == "abort" for part in output.outputs):
                    raise error()
                yield output

    engine.generate = generate_whole


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
