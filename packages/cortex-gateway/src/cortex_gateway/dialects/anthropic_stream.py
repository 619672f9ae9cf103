# SPDX-License-Identifier: GPL-3.0-or-later
"""How a stream of OpenAI chat becomes Anthropic's events, as it comes.

    message_start, ping, (content_block_start, content_block_delta…, content_block_stop)…, message_delta, message_stop

The end is told when the upstream says `[DONE]`, since its usage comes after its finish reason. What ends in any
other way ends in an `error` event, and never in a made-up stop. A comment of the upstream, which keeps a
connection alive, becomes a `ping`: clients' idle timers count events, not comments. Pure.
"""

from typing import Any

import msgspec

from cortex_core import errors, sse
from cortex_core.errors import CortexError, UpstreamProtocolError
from cortex_core.openai import Usage
from cortex_gateway.dialects import anthropic_events as events
from cortex_gateway.dialects.anthropic_blocks import Blocks, Call
from cortex_gateway.dialects.anthropic_parts import (
    Said,
    Stop,
    ToolCall,
    call_id,
    message_id,
)
from cortex_gateway.dialects.anthropic_response import (
    write_message,
    write_stream_error,
    write_upstream_error,
)

# Arguments of one call that come in one piece may be a whole file; beyond this it is no answer any more.
MAX_EVENT_BYTES = 64 * 1024 * 1024


class _Choice(msgspec.Struct, frozen=True, gc=False):
    index: int = 0
    delta: Said | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class _Chunk(msgspec.Struct, frozen=True, gc=False):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: dict[str, Any] | str | None = None


_READ = msgspec.json.Decoder(_Chunk)


class AnthropicStream:
    """One answer on its way to a client that speaks Anthropic's Messages API.

    It fulfils `cortex_core.http.relay.Passing`, and reads OpenAI's bytes.

    Args:
        upstream: who answers, for errors.
        request_id: of the client's request; goes into error bodies.
        max_event_bytes: how long one event of the upstream may be.
    """

    def __init__(
        self, upstream: str, request_id: str, max_event_bytes: int = MAX_EVENT_BYTES
    ) -> None:
        self._upstream = upstream
        self._request_id = request_id
        self._splitter = sse.Splitter(max_event_bytes)
        self._blocks = Blocks()
        self._calls: dict[int, Call] = {}  # by the upstream's index
        self._call_count = 0
        self._message_id = ""  # empty: no message has begun
        self._stop: Stop | None = None
        self._refused = False
        self._usage: Usage | None = None
        self._deltas = 0
        self._ended = False

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An answer that is no stream, complete.

        Raises:
            UpstreamProtocolError: it says success, and is no answer.
        """
        if status < 400:
            return status, write_message(body, self._upstream, self._request_id)
        told = write_upstream_error(status, body, self._request_id)
        return errors.anthropic_status(status), told

    def feed(self, chunk: bytes) -> bytes:
        """The next bytes of a stream; returns what can go to the client now.

        Raises:
            UpstreamProtocolError: they cannot be understood. What was good before them comes with `fail`.
        """
        # Most reads are whole events with plain line ends: they are cheap to part.
        if not self._splitter.is_waiting and chunk.endswith(b"\n\n") and b"\r" not in chunk:
            raws = chunk[:-2].split(b"\n\n")
        else:
            raws = self._split(chunk)
        for raw in raws:
            self._take(raw)
        return self._flush()

    def close(self) -> bytes:
        """The stream has ended; returns what the client is still owed.

        Raises:
            UpstreamProtocolError: it ended too early.
        """
        rest = self._splitter.flush()
        # The empty line that ends the last event is the one thing that may be missing.
        if rest and sse.read_event(rest).data == b"[DONE]":
            self._finish()
        if not self._ended:
            what = "[DONE]" if self._stop else "a finish reason"
            raise self._broken(f"the stream ended without {what}")
        return self._flush()

    def fail(self, error: CortexError) -> bytes:
        """The stream broke; returns the error event, after which nothing comes."""
        if not self._ended:
            self._end_in(errors.write_anthropic(error, self._request_id))
        return self._flush()

    def _split(self, chunk: bytes) -> list[bytes]:
        try:
            return self._splitter.feed(chunk)
        except sse.TooLongError as error:
            raise self._broken(str(error)) from None

    def _take(self, raw: bytes) -> None:
        """One whole event of the upstream, with the empty line that ends it or without."""
        if self._ended:
            return
        if raw.startswith(b"data: ") and b"\n" not in raw and b"\r" not in raw:
            data = raw[6:]
        else:
            event = sse.read_event(raw)
            if event.data is None:
                if event.comment is not None:
                    self._blocks.out.append(events.PING)
                return
            data = event.data
        if data == b"[DONE]":
            self._finish()
        else:
            self._take_chunk(data)

    def _take_chunk(self, data: bytes) -> None:
        try:
            chunk = _READ.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._broken(str(error)) from None
        if chunk.error is not None:
            told = chunk.error if isinstance(chunk.error, dict) else {"message": chunk.error}
            self._end_in(write_stream_error(told, self._request_id))
            return
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not self._message_id:
            self._begin(chunk)
        for choice in chunk.choices or ():
            if choice.index == 0:
                self._take_choice(choice)

    def _begin(self, chunk: _Chunk) -> None:
        self._message_id = message_id(chunk.id or self._request_id)
        start = events.message_start(self._message_id, chunk.model, chunk.usage)
        self._blocks.out += (start, events.PING)

    def _take_choice(self, choice: _Choice) -> None:
        if choice.delta is not None:
            self._take_delta(choice.delta)
        if choice.finish_reason is not None:
            self._stop = Stop(choice.finish_reason, choice.stop_reason)
            if not self._stop.is_known:
                raise self._broken(f"it ended with finish_reason `{choice.finish_reason}`")

    def _take_delta(self, delta: Said) -> None:
        put = self._blocks.put
        if thought := delta.reasoning_content or delta.reasoning:
            self._deltas += 1
            put("thinking", thought)
        if delta.content:
            self._deltas += 1
            put("text", delta.content)
        if delta.refusal:
            self._refused = True
            put("text", delta.refusal)
        for piece in delta.tool_calls or ():
            self._deltas += 1
            if not put(self._find_call(piece), piece.function.text):
                raise self._broken("arguments of a tool call that was complete")

    def _find_call(self, piece: ToolCall) -> Call:
        """The call that a piece belongs to, which begins with it where it names a function.

        Some servers count every call as the first, or do not count at all; then another id means another call.
        Others make up an id per piece, but name the function in the first one only.
        """
        name = piece.function.name
        index = piece.index if piece.index is not None else self._guess_index(piece)
        call = self._calls.get(index)
        if call is not None and (not name or not piece.id or piece.id == call.upstream_id):
            return call
        if not name:
            raise self._broken("a tool call without a name")
        own_id = call_id(piece.id, self._message_id, self._call_count)
        self._call_count += 1
        self._calls[index] = call = Call(own_id, piece.id, name)
        return call

    def _guess_index(self, piece: ToolCall) -> int:
        known = [at for at, call in self._calls.items() if piece.id == call.upstream_id]
        if known and piece.id:
            return known[0]
        return len(self._calls) if piece.function.name else max(self._calls, default=0)

    def _finish(self) -> None:
        """`[DONE]`. Without a finish reason it is no regular end, which `close` will say."""
        if self._stop is None or self._ended:
            return
        self._ended = True
        self._blocks.finish()
        stop = self._stop.write(has_calls=self._call_count > 0, refused=self._refused)
        # Where no usage was told, the deltas that were seen are the best count of tokens there is.
        usage = self._usage or Usage(completion_tokens=self._deltas)
        self._blocks.out += (events.message_delta(stop, usage), events.MESSAGE_STOP)

    def _end_in(self, envelope: bytes) -> None:
        self._ended = True
        self._blocks.out.append(events.error_event(envelope))

    def _flush(self) -> bytes:
        out = b"".join(self._blocks.out)
        self._blocks.out.clear()
        return out

    def _broken(self, reason: str) -> UpstreamProtocolError:
        return UpstreamProtocolError(upstream=self._upstream, reason=reason)
