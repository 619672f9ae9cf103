# SPDX-License-Identifier: GPL-3.0-or-later
"""How a stream of OpenAI chat becomes the events of OpenAI's Responses, as it comes.

    response.created, response.in_progress, (an item's events)…, response.completed or response.incomplete

What does not come to a regular end ends in an `error` event and `response.failed`. Pure.
"""

from typing import Any

from cortex_core import sse
from cortex_core.errors import CortexError
from cortex_core.openai import Usage
from cortex_gateway.dialects.chat_parts import Chunk, Stop, ToolCall
from cortex_gateway.dialects.chat_stream import MAX_EVENT_BYTES, ChatStream
from cortex_gateway.dialects.responses_events import Call, Events
from cortex_gateway.dialects.responses_parts import (
    call_id,
    is_cut,
    plain_id,
    write_end,
    write_shell,
)
from cortex_gateway.dialects.responses_response import write_response

_KEEP_ALIVE = sse.write_comment(b"keep-alive")
_UNKNOWN = "server_error"


class ResponsesStream(ChatStream[Call]):
    """One answer on its way to a client that speaks OpenAI's Responses.

    It fulfils `cortex_core.http.relay.Passing`, and reads chat's bytes.

    Args:
        upstream: who answers, for errors.
        request_id: of the client's request.
        told: the request's fields that the answer tells again.
        model: what the response names where the upstream does not.
        max_event_bytes: how long one event of the upstream may be.
    """

    def __init__(
        self,
        upstream: str,
        request_id: str,
        told: dict[str, Any],
        model: str,
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        super().__init__(upstream, request_id, max_event_bytes)
        self._told = told
        self._model = model
        self._own_id = ""
        self._events: Events | None = None

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An answer that is no stream, complete. An error is told as it is.

        Raises:
            UpstreamProtocolError: it says success, and is no answer.
        """
        if status >= 400:
            return status, body
        told = write_response(body, self._upstream, self._request_id, self._told, self._model)
        return status, told

    def begin(self, chunk: Chunk) -> None:
        self._begin(chunk)

    def think(self, piece: str) -> None:
        self._begun.put("reasoning_text", piece)

    def say(self, piece: str) -> None:
        self._begun.put("output_text", piece)

    def refuse(self, piece: str) -> None:
        self._begun.put("refusal", piece)

    def begin_call(self, piece: ToolCall, number: int) -> Call:
        events = self._begun
        return events.call(call_id(piece.id, self._own_id, number), piece.function.name or "")

    def go_on_calling(self, call: Call, piece: str) -> bool:
        self._begun.put_arguments(call, piece)
        return True

    def keep_alive(self) -> None:
        self.out.append(_KEEP_ALIVE)

    def finish(self, stop: Stop, usage: Usage) -> None:
        self._begun.finish(write_end(stop, [], usage), is_cut=is_cut(stop))

    def tell_error(self, error: dict[str, Any]) -> None:
        code, message, param = (error.get(name) for name in ("code", "message", "param"))
        self._begun.fail(
            str(code or error.get("type") or _UNKNOWN),
            str(message or "The upstream ended its stream in an error, and did not say why."),
            param if isinstance(param, str) else None,
        )

    def tell_failure(self, error: CortexError) -> None:
        self._begun.fail(error.code, error.message, error.param)

    @property
    def _begun(self) -> Events:
        """The response, which begins here where it broke before the upstream said anything."""
        return self._events or self._begin(Chunk())

    def _begin(self, chunk: Chunk) -> Events:
        self._own_id = plain_id(chunk.id or self._request_id)
        shell = write_shell(self._told, self._own_id, chunk.model or self._model, chunk.created)
        self._events = Events(self.out, shell, self._own_id)
        return self._events
