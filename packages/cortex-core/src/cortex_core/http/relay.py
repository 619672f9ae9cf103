# SPDX-License-Identifier: GPL-3.0-or-later
"""One exchange: the upstream's bytes to the client, as they come, whatever happens to either."""

from typing import Protocol

from cortex_core import openai, responses, sse
from cortex_core.errors import (
    CortexError,
    FleetError,
    InvalidRequestBodyError,
    RateLimitExceededError,
    UpstreamProtocolError,
    WaitTimeoutError,
)
from cortex_core.http import headers
from cortex_core.http.client import RefusedError, Reply, read_all
from cortex_core.http.exchange import Exchange
from cortex_core.http.headers import Headers

# What a server means that is no neuron, and has words of its own, as llama-server's `503` for "Loading model".
_BUSY: dict[int, type[CortexError]] = {429: RateLimitExceededError, 503: WaitTimeoutError}


class Passing(Protocol):
    """What happens to an answer on its way. Pure; any cut of the input gives the same output."""

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An answer that is no stream, complete; returns the client's status and body."""

    def feed(self, chunk: bytes) -> bytes:
        """The next bytes of a stream; returns what can go to the client now."""

    def close(self) -> bytes:
        """The stream has ended; returns what the client is still owed.

        Raises:
            UpstreamProtocolError: it ended too early.
        """

    def fail(self, error: CortexError) -> bytes:
        """The stream broke; returns the dialect's error event and its regular end."""


class Verbatim:
    """OpenAI's dialect, unchanged."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._tail = b""

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        return status, body

    def feed(self, chunk: bytes) -> bytes:
        # Enough to know the end by; a slice and, for tiny chunks, one small join.
        self._tail = chunk[-32:] if len(chunk) >= 32 else (self._tail + chunk)[-32:]
        return chunk

    def close(self) -> bytes:
        if not self._tail.rstrip().endswith(b"data: [DONE]"):
            raise UpstreamProtocolError(
                upstream=self._upstream, reason="the stream ended without [DONE]"
            )
        return b""

    def fail(self, error: CortexError) -> bytes:
        return self._close_event() + openai.write_error_events(error)

    def _close_event(self) -> bytes:
        """A broken event may be left open: close it, so that the next is read as one of its own."""
        is_open = self._tail and not self._tail.endswith((b"\n\n", b"\r\n\r\n"))
        return b"\n\n" if is_open else b""


class VerbatimResponses(Verbatim):
    """OpenAI's Responses, unchanged. Its streams have no `[DONE]`: their last event says how they ended."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self._splitter = sse.Splitter()
        self._progress = responses.Progress()

    def feed(self, chunk: bytes) -> bytes:
        try:
            events = self._splitter.feed(chunk)
        except sse.TooLongError as error:
            raise UpstreamProtocolError(upstream=self._upstream, reason=str(error)) from None
        for event in events:
            self._note(event)
        return super().feed(chunk)

    def close(self) -> bytes:
        self._note(self._splitter.flush())  # its empty line may be missing
        if not self._progress.is_done:
            reason = "the stream ended before its response did"
            raise UpstreamProtocolError(upstream=self._upstream, reason=reason)
        return b""

    def fail(self, error: CortexError) -> bytes:
        if self._progress.is_done:  # what broke after the last event, nobody misses
            return b""
        return self._close_event() + responses.write_error_event(error, self._progress.next_number)

    def _note(self, raw: bytes) -> None:
        data = sse.read_event(raw).data
        if data is not None:
            self._progress.note(data)


async def relay(
    exchange: Exchange, reply: Reply, passing: Passing, extra: Headers
) -> CortexError | None:
    """Give the client the upstream's answer; `extra` headers are added.

    A client that has its headers already, of a stream, gets the rest of one: what is none is told as an error in it.

    A stream leaves as it comes. Anything else is read to its end first, so that an upstream that breaks off
    is an honest error and not half an answer.

    Returns:
        The error that a stream ended with, which the client has been told; None: it ended well.

    Raises:
        FleetError: the upstream failed before the answer began.
        CortexError: it refused, and the client has its headers already: the refusal, as `retell` puts it.
    """
    fields = [*headers.to_client(reply.headers), *extra]
    has_begun = exchange.status is not None
    if not reply.is_event_stream and has_begun:
        raise retell(RefusedError(reply.status, await read_all(reply), reply.headers))
    if not reply.is_event_stream:
        status, body = passing.whole(reply.status, await read_all(reply))
        await exchange.answer(status, body, fields)
        return None
    if not has_begun:
        await exchange.start(reply.status, fields)
    failed: CortexError | None = None
    try:
        while chunk := await reply.read():
            if out := passing.feed(chunk):
                await exchange.write(out)
        last = passing.close()
    except FleetError as error:
        failed = error
        last = passing.fail(error)
        exchange.notes["error_code"] = error.code
    await exchange.end(last)
    return failed


def retell(refused: RefusedError) -> CortexError:
    """An upstream's refusal as an error of ours, in its words: of its code where we know that; else one who is busy is that."""
    kind = _find_kind(CortexError, refused.code) or _BUSY.get(refused.status)
    if kind is not None:
        error = kind.__new__(kind)
        error.facts, error.param, error.retry_after_s = refused.facts, None, refused.retry_after_s
        error.args = (refused.message,)
        return error
    if refused.status < 500:
        return InvalidRequestBodyError(reason=refused.message)
    return UpstreamProtocolError(upstream="the node", reason=str(refused))


def _find_kind(base: type[CortexError], code: str | None) -> type[CortexError] | None:
    for kind in base.__subclasses__():
        found = kind if getattr(kind, "code", None) == code else _find_kind(kind, code)
        if code is not None and found is not None:
            return found
    return None
