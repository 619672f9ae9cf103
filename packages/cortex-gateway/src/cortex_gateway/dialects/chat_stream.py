# SPDX-License-Identifier: GPL-3.0-or-later
"""What a stream of OpenAI chat says, piece by piece, cut anywhere: the reading half of every translation from it.

A dialect is a subclass that writes what is read here. The end is told when the upstream says `[DONE]`, since its
usage comes after its finish reason. What ends in any other way ends in an error, and never in a made-up stop. Pure.
"""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import msgspec

from cortex_core import sse
from cortex_core.errors import CortexError, UpstreamProtocolError
from cortex_core.openai import Usage
from cortex_gateway.dialects.chat_frames import Frame, find_frame
from cortex_gateway.dialects.chat_parts import Chunk, ChunkChoice, Said, Stop, ToolCall
from cortex_gateway.usage import ToldUsage

# Arguments of one call that come in one piece may be a whole file; beyond this it is no answer any more.
MAX_EVENT_BYTES = 64 * 1024 * 1024
# A stream has one for what is thought, and one for what is said; where no two chunks are alike, looking for more costs.
MAX_FRAMES = 16

C = TypeVar("C")

_READ = msgspec.json.Decoder(Chunk)
_NO_NAME = "a tool call without a name"


class ChatStream(ABC, Generic[C]):
    """One answer on its way to a client of another dialect, in which a tool call is a C.

    Args:
        upstream: who answers, for errors.
        request_id: of the client's request.
        max_event_bytes: how long one event of the upstream may be.

    Attributes:
        out: what is to go to the client; emptied by `feed`, `close` and `fail`.
        has_calls: tools were called.
    """

    def __init__(
        self, upstream: str, request_id: str, max_event_bytes: int = MAX_EVENT_BYTES
    ) -> None:
        self.out: list[bytes] = []
        self.has_calls = False
        self._upstream = upstream
        self._request_id = request_id
        self._splitter = sse.Splitter(max_event_bytes)
        # By the upstream's index: its id, the function's name, the call.
        self._calls: dict[int, tuple[str | None, str, C]] = {}
        # Likewise, the ids of calls that are opened, and not begun.
        self._nameless: dict[int, str | None] = {}
        self._call_count = 0
        self._has_begun = False
        self._stop: Stop | None = None
        self._usage = ToldUsage()
        self._deltas = 0
        self._ended = False
        self._frame: Frame | None = None
        self._frames_left = MAX_FRAMES
        self._tell = self.say  # of the frame's texts

    @abstractmethod
    def begin(self, chunk: Chunk) -> None:
        """The first chunk, of which the rest is told by the others."""

    @abstractmethod
    def think(self, piece: str) -> None:
        """What the model thinks."""

    @abstractmethod
    def say(self, piece: str) -> None:
        """What it says."""

    @abstractmethod
    def refuse(self, piece: str) -> None:
        """What it says instead of an answer."""

    @abstractmethod
    def begin_call(self, piece: ToolCall, number: int) -> C:
        """The first piece of a call, which names the function; its arguments are told by `go_on_calling`."""

    @abstractmethod
    def go_on_calling(self, call: C, piece: str) -> bool:
        """Arguments of a call, or none; False: the call was complete, and there is no place for them."""

    @abstractmethod
    def keep_alive(self) -> None:
        """The upstream is there, and has nothing to say yet."""

    @abstractmethod
    def finish(self, stop: Stop, usage: Usage) -> None:
        """The regular end."""

    @abstractmethod
    def tell_error(self, error: dict[str, Any]) -> None:
        """The upstream ended its stream in this error, as OpenAI's envelope holds it."""

    @abstractmethod
    def tell_failure(self, error: CortexError) -> None:
        """The stream broke."""

    def feed(self, chunk: bytes) -> bytes:
        """The next bytes of a stream; returns what can go to the client now.

        Raises:
            UpstreamProtocolError: they cannot be understood. What was good before them comes with `fail`.
        """
        if (out := self.feed_alike(chunk)) is not None:
            return out
        # Most reads are whole events with plain line ends: they are cheap to part.
        if not self._splitter.is_waiting and chunk.endswith(b"\n\n") and b"\r" not in chunk:
            raws = chunk[:-2].split(b"\n\n")
        else:
            raws = self._split(chunk)
        for raw in raws:
            self._take(raw)
        return self._flush()

    def feed_alike(self, chunk: bytes) -> bytes | None:
        """As `feed`, for one chunk that is another one over again but for its text; None: it is not, and was not taken."""
        frame = self._frame
        if frame is None or (text := frame.read(chunk)) is None:
            return None
        if self._ended or self._splitter.is_waiting:
            return None
        self._deltas += 1
        self._tell(text)
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
            raise self.broken(f"the stream ended without {what}")
        return self._flush()

    def fail(self, error: CortexError) -> bytes:
        """The stream broke; returns the error event, after which nothing comes."""
        if not self._ended:
            self._ended = True
            self.tell_failure(error)
        return self._flush()

    def broken(self, reason: str) -> UpstreamProtocolError:
        """What the upstream did that cannot be understood, as an error to raise."""
        return UpstreamProtocolError(upstream=self._upstream, reason=reason)

    def _split(self, chunk: bytes) -> list[bytes]:
        try:
            return self._splitter.feed(chunk)
        except sse.TooLongError as error:
            raise self.broken(str(error)) from None

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
                    self.keep_alive()
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
            raise self.broken(str(error)) from None
        if chunk.error is not None:
            self._ended = True
            self.tell_error(
                chunk.error if isinstance(chunk.error, dict) else {"message": chunk.error}
            )
            return
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not self._has_begun:
            self._has_begun = True
            self.begin(chunk)
        for choice in chunk.choices or ():
            if choice.index == 0:
                self._take_choice(choice)
        self._look_for_frame(data, chunk)

    def _look_for_frame(self, data: bytes, chunk: Chunk) -> None:
        if not self._frames_left or (self._frame and self._frame.fits(sse.write_data(data))):
            return
        self._frames_left -= 1
        if found := find_frame(data, chunk):
            self._frame = found
            self._tell = self.say if found.field == "content" else self.think

    def _take_choice(self, choice: ChunkChoice) -> None:
        if choice.delta is not None:
            self._take_delta(choice.delta)
        if choice.finish_reason:  # some servers write an empty text for null
            self._stop = Stop(choice.finish_reason, choice.stop_reason)
            if not self._stop.is_known:
                raise self.broken(f"it ended with finish_reason `{choice.finish_reason}`")
            if self._nameless:
                raise self.broken(_NO_NAME)

    def _take_delta(self, delta: Said) -> None:
        if thought := delta.reasoning_content or delta.reasoning:
            self._deltas += 1
            self.think(thought)
        if delta.content:
            self._deltas += 1
            self.say(delta.content)
        if delta.refusal:
            self._deltas += 1
            self.refuse(delta.refusal)
        for piece in delta.tool_calls or ():
            self._deltas += 1
            self._take_call(piece)

    def _take_call(self, piece: ToolCall) -> None:
        """A piece of a call. Some servers open a call before they know its name; then nothing is told yet."""
        index = piece.index if piece.index is not None else self._guess_index(piece)
        text = piece.function.text
        if not (piece.function.name or text or index in self._calls):
            self._nameless[index] = piece.id or self._nameless.get(index)
        elif not self.go_on_calling(self._find_call(piece, index), text):
            raise self.broken("arguments of a tool call that was complete")

    def _find_call(self, piece: ToolCall, index: int) -> C:
        """The call that a piece belongs to, which begins with it where it names a function.

        Some servers count every call as the first, or do not count at all; then another id means another call.
        Others make up an id per piece, but name the function in the first one only.
        """
        name = piece.function.name
        if known := self._calls.get(index):
            upstream_id, known_name, call = known
            if not name or not piece.id or piece.id == upstream_id:
                if name and name != known_name:
                    raise self.broken(f"a tool call of `{known_name}` that became `{name}`")
                return call
        if not name:
            raise self.broken(_NO_NAME)
        upstream_id = self._nameless.pop(index, None) or piece.id
        call = self.begin_call(msgspec.structs.replace(piece, id=upstream_id), self._call_count)
        self.has_calls = True
        self._call_count += 1
        self._calls[index] = upstream_id, name, call
        return call

    def _guess_index(self, piece: ToolCall) -> int:
        known = [at for at, (upstream_id, _, _) in self._calls.items() if piece.id == upstream_id]
        if known and piece.id:
            return known[0]
        return len(self._calls) if piece.function.name else max(self._calls, default=0)

    def _finish(self) -> None:
        """`[DONE]`. Without a finish reason it is no regular end, which `close` will say."""
        if self._stop is None or self._ended:
            return
        self._ended = True
        # Where no usage was told, the deltas that were seen are the best count of tokens there is.
        self.finish(self._stop, self._usage.known(self._deltas))

    def _flush(self) -> bytes:
        out = b"".join(self.out)
        self.out.clear()
        return out
