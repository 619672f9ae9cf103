# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's Responses API: what its streams tell of themselves, and how one ends in an error.

Its events are named, numbered from 0, and have no `[DONE]`: the last one says how the response ended
(https://platform.openai.com/docs/api-reference/responses-streaming). Pure.
"""

import msgspec

from cortex_core import sse
from cortex_core.errors import CortexError
from cortex_core.openai import CompletionDetails, PromptDetails, Usage

# After one of these nothing comes.
ENDS = frozenset({"response.completed", "response.failed", "response.incomplete", "error"})


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one response, in this API's words."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: PromptDetails | None = None
    output_tokens_details: CompletionDetails | None = None

    def usage(self) -> Usage:
        """The same in the words of chat completions."""
        return Usage(
            prompt_tokens=self.input_tokens,
            completion_tokens=self.output_tokens,
            total_tokens=self.total_tokens,
            prompt_tokens_details=self.input_tokens_details,
            completion_tokens_details=self.output_tokens_details,
        )


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response failed."""

    code: str | int | None = None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A response, as far as it is looked into."""

    usage: ResponseUsage | None = None
    error: Failure | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream, as far as it is looked into.

    Attributes:
        type: such as `response.output_text.delta`; empty: it is none of this API's.
        sequence_number: None: it has none.
        response: of the first events and of the last.
        code: of an `error` event.
        error: of an error in the words of the other APIs, which ends a stream too.
    """

    type: str = ""
    sequence_number: int | None = None
    response: Response | None = None
    code: str | int | None = None
    error: Failure | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after it."""
        return self.type in ENDS or self.error is not None


_READ_EVENT = msgspec.json.Decoder(Event)
_READ_RESPONSE = msgspec.json.Decoder(Response)
_ENCODE = msgspec.json.Encoder()
_NOTHING = Event()


def read_event(data: bytes) -> Event:
    """The data of one event; one that cannot be read says nothing."""
    try:
        return _READ_EVENT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NOTHING


def read_response(body: bytes) -> Response:
    """A whole answer; one that cannot be read says nothing."""
    try:
        return _READ_RESPONSE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Response()


def write_error_event(error: CortexError, sequence_number: int) -> bytes:
    """How a stream that has begun ends in an error."""
    fields = {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "sequence_number": sequence_number,
    }
    return b"event: error\n" + sse.write_data(_ENCODE.encode(fields))


class Progress:
    """How far a stream is: fed with its events' data.

    Attributes:
        is_done: it has come to its end.
        next_number: the sequence number of the event that would come next.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.next_number = 0

    def note(self, data: bytes) -> Event:
        """Take one event's data; returns what is in it."""
        event = read_event(data)
        if event.sequence_number is not None:
            self.next_number = event.sequence_number + 1
        self.is_done = self.is_done or event.is_last
        return event
