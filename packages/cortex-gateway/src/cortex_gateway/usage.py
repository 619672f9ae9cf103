# SPDX-License-Identifier: GPL-3.0-or-later
"""What did an answer cost, and when did its first word come? Read off the bytes on their way to the client. Pure."""

from collections.abc import Callable
from contextlib import suppress

import msgspec

from cortex_core import openai, sse
from cortex_core.errors import CortexError, UpstreamProtocolError
from cortex_core.openai import CompletionDetails, PromptDetails, Usage
from cortex_core.wire import USAGE_COMMENT
from cortex_gateway.foreign_errors import write_envelope

# Below it the window of a stream holds too few arrivals to make a rate of.
MIN_WINDOW_S = 0.1
# How a choice says that it goes on, in the two ways of writing JSON that are in use.
_FINISH, _NO_FINISH, _NO_FINISH_SPACED = (
    b'"finish_reason"',
    b'"finish_reason":null',
    b'"finish_reason": null',
)


class ToldUsage(msgspec.Struct, frozen=True):
    """The usage as any server tells it. Some say null for what they do not count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    def known(self, completion_tokens: int = 0) -> Usage:
        """Its counts. `completion_tokens`: of the answer, where it does not say."""
        told = self.completion_tokens
        return Usage(
            prompt_tokens=self.prompt_tokens or 0,
            completion_tokens=completion_tokens if told is None else told,
            total_tokens=self.total_tokens or 0,
            prompt_tokens_details=self.prompt_tokens_details,
            completion_tokens_details=self.completion_tokens_details,
        )


class _Failure(msgspec.Struct, frozen=True):
    code: str | int | None = None


class _Marks(msgspec.Struct, frozen=True):
    """The fields that an event, or a whole answer, is looked into for."""

    usage: ToldUsage | None = None
    error: _Failure | str | None = None


class _Choice(msgspec.Struct, frozen=True):
    finish_reason: str | None = None


class _Choices(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []


_READ_MARKS = msgspec.json.Decoder(_Marks)
_READ_USAGE = msgspec.json.Decoder(Usage)
_READ_CHOICES = msgspec.json.Decoder(_Choices)
_CHECK = msgspec.json.Decoder(msgspec.Raw)


class Meter:
    """Gives an answer in OpenAI's dialect to the client as it is, and reads usage and timings off it.

    It fulfils `cortex_core.http.relay.Passing`. Only the neuron's usage comment is taken out, and an event that is not
    whole is kept back until it is: a client could not read it, and what breaks off in the middle of one must not be
    glued to our error event.

    Attributes:
        ends_in: what a stream must still come to, in words.
        upstream: who answers, for errors.
        usage: as the upstream reported it; None: it has not, or never does.
        first_s: when the first real content came, by `now`; None: none came, or the answer is no stream.
        last_s: when the last content came.
        deltas: events with content.
        is_done: the stream came to its regular end.
        error_code: of the error that the answer or stream held or ended in; None: there was none.
    """

    ends_in = "[DONE]"

    def __init__(
        self, upstream: str, now: Callable[[], float], has_content: Callable[[bytes], bool]
    ) -> None:
        self.usage: Usage | None = None
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.deltas = 0
        self.is_done = False
        self.error_code: str | None = None
        self.upstream = upstream
        self._now = now
        self._has_content = has_content
        self._splitter = sse.Splitter()
        self._is_whole = True  # no part of an event is kept back
        self._has_stopped = False  # it said why it ends

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt; None: none were reported. Who counts one sum alone has a prompt and no answer."""
        if self.usage is None:
            return None
        others = self.usage.total_tokens - self.usage.completion_tokens
        return self.usage.prompt_tokens or max(0, others)

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer; where no usage was reported, the deltas that were seen."""
        return (self.usage.completion_tokens if self.usage else 0) or self.deltas

    @property
    def tokens_per_s(self) -> float | None:
        """Rate between the first and the last content; None: too short to tell, or no stream."""
        if self.first_s is None or self.last_s is None:
            return None
        window_s = self.last_s - self.first_s
        # the first token opens the window, so it is not made inside it
        return (self.completion_tokens - 1) / window_s if window_s >= MIN_WINDOW_S else None

    @property
    def is_flowing(self) -> bool:
        """Whether content has come, and no part of an event is kept back."""
        return self._is_whole and self.first_s is not None

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An answer that is no stream, complete; a refusal in the envelope in any case.

        Raises:
            UpstreamProtocolError: it is no JSON, whatever its status says: a proxy's page, or half of something; or it
                leads elsewhere.
        """
        if not _is_json(body):
            raise self._broken(f"its answer, of status {status}, is no JSON")
        if 300 <= status < 400:
            raise self._broken(f"its answer, of status {status}, leads elsewhere")
        if status >= 400:
            body = write_envelope(status, body)
        self._read_whole(body)
        return status, body

    def feed(self, chunk: bytes) -> bytes:
        """The next bytes of a stream; returns what can go to the client now."""
        if self._is_whole and self.first_s is not None and self._is_plain(chunk):
            self.deltas += 1 + chunk.count(b"\n\ndata:")
            self.last_s = self._now()
            return chunk
        try:
            events = self._splitter.feed(chunk)
        except sse.TooLongError as error:
            raise self._broken(str(error)) from None
        self._is_whole = not self._splitter.is_waiting
        return b"".join([event for event in events if self._passes(event)])

    def close(self) -> bytes:
        """The stream has ended; returns what the client is still owed.

        Raises:
            UpstreamProtocolError: it ended without its regular end.
        """
        rest = self._splitter.flush()
        owed = rest if rest and self._passes(rest) else b""
        if not self.is_done:
            raise self._broken(f"the stream ended without {self.ends_in}")
        return owed

    def fail(self, error: CortexError) -> bytes:
        """The stream broke; returns an error event and the regular end, unless that has gone out."""
        if self.is_done:
            return b""
        self.error_code = error.code
        return openai.write_error_events(error)

    def note_content(self) -> None:
        """An event with content comes now."""
        self.deltas += 1
        self.last_s = self._now()
        if self.first_s is None:
            self.first_s = self.last_s

    def _is_plain(self, chunk: bytes) -> bool:
        """Whether a chunk is nothing but whole, ordinary content events; may say no to one that is."""
        return (
            chunk.startswith(b"data:")
            and chunk.endswith(b"\n\n")
            and b"\n:" not in chunk
            and b"\r" not in chunk
            and b"[DONE]" not in chunk
            and not _may_be_special(chunk)
        )

    def _passes(self, raw: bytes) -> bool:
        """Read one event; False: it is not for the client."""
        event = sse.read_event(raw)
        if event.data is None:
            return not self._take_usage_comment(raw.lstrip(b"\r\n"))
        self._read_event(event.data)
        return self.is_done or event.data != b"[DONE]"

    def _read_whole(self, body: bytes) -> None:
        self._read_marks(body)

    def _read_event(self, data: bytes) -> None:
        if data != b"[DONE]":
            self._read_data(data)
        elif self._has_stopped:
            self.is_done = True
        else:  # kept back: to a client it would be the end of a whole answer
            self.ends_in = "a finish reason"

    def _take_usage_comment(self, raw: bytes) -> bool:
        if not raw.startswith(USAGE_COMMENT):
            return False
        # What cannot be read is taken out all the same: it is between the neuron and us. Then the deltas count.
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            self.usage = _READ_USAGE.decode(raw[len(USAGE_COMMENT) :])
        return True

    def _read_data(self, data: bytes) -> None:
        if _may_be_special(data):
            self._read_marks(data)
            self._has_stopped |= self.error_code is not None or _has_stop(data)
            counts = self._has_content(data)
        else:
            # once content flows, an event with none is the exception, and not worth looking for
            counts = self.first_s is not None or self._has_content(data)
        if counts:
            self.note_content()

    def _read_marks(self, data: bytes) -> None:
        try:
            marks = _READ_MARKS.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if marks.usage is not None:
            self.usage = marks.usage.known()
        if marks.error is not None:
            code = marks.error.code if isinstance(marks.error, _Failure) else None
            self.error_code = str(code or "unknown")

    def _broken(self, reason: str) -> UpstreamProtocolError:
        return UpstreamProtocolError(upstream=self.upstream, reason=reason)


def _is_json(body: bytes) -> bool:
    try:
        _CHECK.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _may_be_special(data: bytes) -> bool:
    """Whether there may be a usage, an error or a finish in it. Inside of texts the quotes are escaped."""
    # written out: it is asked of every chunk
    return b'"usage"' in data or b'"error"' in data or _may_be_stop(data)


def _may_be_stop(data: bytes) -> bool:
    """Whether a choice may tell why it ends: of those that speak of it, not each one says null."""
    told = data.count(_FINISH)
    return told != data.count(_NO_FINISH) and told != data.count(_NO_FINISH_SPACED)


def _has_stop(data: bytes) -> bool:
    """Whether a choice tells why it ends. Some servers write an empty text for null."""
    if not _may_be_stop(data):
        return False
    try:
        choices = _READ_CHOICES.decode(data).choices
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return any(choice.finish_reason for choice in choices)
