# SPDX-License-Identifier: GPL-3.0-or-later
"""How a stream of OpenAI chat becomes Anthropic's events, as it comes.

    message_start, ping, (content_block_start, content_block_delta…, content_block_stop)…, message_delta, message_stop

What does not come to a regular end ends in an `error` event. A comment of the upstream, which keeps a connection
alive, becomes a `ping`: clients' idle timers count events, not comments. Pure.
"""

from typing import Any

from cortex_core import anthropic
from cortex_core.errors import CortexError
from cortex_core.openai import Usage
from cortex_gateway.dialects import anthropic_events as events
from cortex_gateway.dialects.anthropic_blocks import Blocks, Call
from cortex_gateway.dialects.anthropic_parts import call_id, message_id, write_stop
from cortex_gateway.dialects.anthropic_response import (
    write_message,
    write_stream_error,
    write_upstream_error,
)
from cortex_gateway.dialects.chat_parts import Chunk, Stop, ToolCall
from cortex_gateway.dialects.chat_stream import MAX_EVENT_BYTES, ChatStream


class AnthropicStream(ChatStream[Call]):
    """One answer on its way to a client that speaks Anthropic's Messages API.

    It fulfils `cortex_core.http.relay.Passing`, and reads OpenAI's bytes. Arguments as of ChatStream; the request's id
    goes into error bodies.
    """

    def __init__(
        self, upstream: str, request_id: str, max_event_bytes: int = MAX_EVENT_BYTES
    ) -> None:
        super().__init__(upstream, request_id, max_event_bytes)
        self._blocks = Blocks()
        self.out = self._blocks.out
        self._message_id = ""
        self._refused = False

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An answer that is no stream, complete.

        Raises:
            UpstreamProtocolError: it says success, and is no answer.
        """
        if status < 400:
            return status, write_message(body, self._upstream, self._request_id)
        told = write_upstream_error(status, body, self._request_id)
        return anthropic.status_of(status), told

    def begin(self, chunk: Chunk) -> None:
        self._message_id = message_id(chunk.id or self._request_id)
        usage = chunk.usage.known() if chunk.usage else None
        start = events.message_start(self._message_id, chunk.model, usage)
        self.out += (start, events.PING)

    def think(self, piece: str) -> None:
        self._blocks.put("thinking", piece)

    def say(self, piece: str) -> None:
        self._blocks.put("text", piece)

    def refuse(self, piece: str) -> None:
        self._refused = True
        self._blocks.put("text", piece)

    def begin_call(self, piece: ToolCall, number: int) -> Call:
        return Call(call_id(piece.id, self._message_id, number), piece.function.name or "")

    def go_on_calling(self, call: Call, piece: str) -> bool:
        return self._blocks.put(call, piece)

    def keep_alive(self) -> None:
        self.out.append(events.PING)

    def finish(self, stop: Stop, usage: Usage) -> None:
        self._blocks.finish()
        told = write_stop(stop, has_calls=self.has_calls, refused=self._refused)
        self.out += (events.message_delta(told, usage), events.MESSAGE_STOP)

    def tell_error(self, error: dict[str, Any]) -> None:
        self.out.append(events.error_event(write_stream_error(error, self._request_id)))

    def tell_failure(self, error: CortexError) -> None:
        self.out.append(events.error_event(anthropic.write_error(error, self._request_id)))
