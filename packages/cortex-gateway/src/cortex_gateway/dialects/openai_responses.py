# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's Responses: its streams are named events without `[DONE]`; what do they hold, and how do they end? Pure."""

from collections.abc import Callable

from cortex_core import responses
from cortex_core.errors import CortexError
from cortex_core.responses import Progress, ResponseUsage
from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.responses_chat import ResponsesByChat
from cortex_gateway.dialects.verbatim import Verbatim
from cortex_gateway.usage import Meter

# A piece of what the model says, thinks or calls: `response.output_text.delta` and its like.
_PIECE = ".delta"


class ResponsesMeter(Meter):
    """Reads usage and timings off a stream of Responses; attributes as Meter's."""

    ends_in = "its last event"

    def __init__(self, upstream: str, now: Callable[[], float]) -> None:
        super().__init__(upstream, now, lambda data: False)
        self._progress = Progress()

    def fail(self, error: CortexError) -> bytes:
        if self.is_done:
            return b""
        self.error_code = error.code
        return responses.write_error_event(error, self._progress.next_number)

    def _is_plain(self, chunk: bytes) -> bool:
        return False  # each event has a number, which an error would go on from

    def _read_whole(self, body: bytes) -> None:
        found = responses.read_response(body)
        self._note_usage(found.usage)
        if found.error is not None:
            self.error_code = str(found.error.code or "unknown")

    def _read_event(self, data: bytes) -> None:
        found = self._progress.note(data)
        self.is_done = self._progress.is_done
        if found.type.endswith(_PIECE):
            self.note_content()
        if found.response is not None:
            self._note_usage(found.response.usage)
        failure = found.error or (found.response.error if found.response else None)
        if found.type == "error" or failure is not None:
            self.error_code = str(found.code or (failure and failure.code) or "unknown")

    def _note_usage(self, usage: ResponseUsage | None) -> None:
        if usage is not None:
            self.usage = usage.usage()


class OpenAIResponses(Verbatim):
    """POST /v1/responses."""

    without_route: Dialect | None = ResponsesByChat()

    def __init__(self) -> None:
        super().__init__("openai_responses", "/v1/responses", lambda data: False)

    def meter(self, upstream: str, now: Callable[[], float]) -> Meter:
        return ResponsesMeter(upstream, now)


OPENAI_RESPONSES = OpenAIResponses()
