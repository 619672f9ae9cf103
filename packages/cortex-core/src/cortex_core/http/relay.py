# SPDX-License-Identifier: GPL-3.0-or-later
"""One exchange: the upstream's bytes to the client, as they come, whatever happens to either."""

from typing import Protocol

from cortex_core import openai
from cortex_core.errors import CortexError, FleetError, UpstreamProtocolError
from cortex_core.http import headers
from cortex_core.http.client import Reply, read_all
from cortex_core.http.exchange import Exchange
from cortex_core.http.headers import Headers


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
        # A broken event may be left open: close it, so that ours is read as one of its own.
        opened = b"" if self._tail.endswith((b"\n\n", b"\r\n\r\n")) or not self._tail else b"\n\n"
        return opened + openai.write_error_events(error)


async def relay(
    exchange: Exchange, reply: Reply, passing: Passing, extra: Headers
) -> CortexError | None:
    """Give the client the upstream's answer; `extra` headers are added.

    A stream leaves as it comes. Anything else is read to its end first, so that an upstream that breaks off
    is an honest error and not half an answer.

    Returns:
        The error that a stream ended with, which the client has been told; None: it ended well.

    Raises:
        FleetError: the upstream failed before the answer began.
    """
    fields = [*headers.to_client(reply.headers), *extra]
    if not reply.is_event_stream:
        status, body = passing.whole(reply.status, await read_all(reply))
        await exchange.answer(status, body, fields)
        return None
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
