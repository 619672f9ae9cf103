# SPDX-License-Identifier: GPL-3.0-or-later
"""Which content block of a streamed Anthropic message is open, and what has to wait until it is closed.

OpenAI's deltas may go to and fro between text, thinking and several tool calls. Anthropic's blocks come one
after the other, and clients break where two are open. So a block is closed when something else comes; only a
call whose arguments are not complete yet is kept open, and what comes meanwhile waits. Pure.
"""

import msgspec

from cortex_gateway.dialects import anthropic_events as events
from cortex_gateway.dialects.anthropic_parts import INVALID_JSON, write_call
from cortex_gateway.dialects.chat_parts import is_nothing

_ENCODE = msgspec.json.Encoder()
_READ = msgspec.json.Decoder()


class Call:
    """One tool call.

    Attributes:
        id: as the client sees it.
        is_closed: its block is complete.
    """

    def __init__(self, own_id: str, name: str) -> None:
        self.id = own_id
        self.name = name
        self.is_closed = False
        self._pieces: list[str] = []
        self._is_object: bool | None = None  # None: nothing but white space has come

    def take(self, piece: str) -> str:
        """The next piece of its arguments; returns what of them can be said now.

        Clients break at an input that is no object, which some servers and models write; so nothing of one is said.
        """
        self._pieces.append(piece)
        if self._is_object is None:
            piece = "".join(self._pieces)
            if head := piece.lstrip():
                self._is_object = head.startswith("{")
        return piece if self._is_object else ""

    @property
    def rest(self) -> str:
        """What is to be said at its end: arguments that are no object, in one; else nothing."""
        given = "".join(self._pieces)
        if self._is_object or is_nothing(given):
            return ""
        return _ENCODE.encode({INVALID_JSON: given}).decode()

    @property
    def is_complete(self) -> bool:
        """Whether its arguments are whole JSON. Looked at only when something else wants to go on."""
        if not self._pieces or not self._pieces[-1].rstrip().endswith("}"):
            return False
        try:
            _READ.decode("".join(self._pieces))
        except (msgspec.DecodeError, RecursionError):
            return False
        return True


# `text` and `thinking` are blocks of that kind, of which the next piece goes to the open one or begins another.
Target = str | Call


class Blocks:
    """The content blocks of one message, in order.

    Attributes:
        out: events that are to go to the client; the owner empties it.
    """

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self._index = 0
        self._open: Target | None = None
        self._delta_start = b""
        self._waiting: list[tuple[Target, str]] = []

    def put(self, target: Target, piece: str) -> bool:
        """The next piece of text, of thinking, or of a call's arguments; for a call it may be empty.

        Returns:
            False: the call was complete already, and there is no place for the piece.
        """
        if target == self._open:
            self._say(target, piece)
            if self._waiting and isinstance(target, Call) and target.is_complete:
                self._release()
        elif isinstance(target, Call) and target.is_closed:
            return not piece.strip()
        elif isinstance(self._open, Call) and not self._open.is_complete:
            self._waiting.append((target, piece))
        else:
            self._begin(target)
            self._say(target, piece)
        return True

    def finish(self) -> None:
        """No piece comes any more: close what is open, and then what has waited, one after the other."""
        self._end()
        while self._waiting:
            self._release()
            self._end()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for target, piece in waiting:
            self.put(target, piece)

    def _say(self, target: Target, piece: str) -> None:
        said = target.take(piece) if isinstance(target, Call) else piece
        if said:
            self.out.append(self._delta_start + _ENCODE.encode(said) + events.DELTA_END)

    def _begin(self, target: Target) -> None:
        self._end()
        self._open = target
        if isinstance(target, Call):
            kind, block = "tool_use", write_call(target.id, target.name)
        else:
            kind, block = target, events.STARTS[target]
        self._delta_start = events.delta_start(self._index, kind)
        self.out.append(events.block_start(self._index, block))

    def _end(self) -> None:
        if self._open is None:
            return
        if self._open == "thinking":
            self.out.append(events.signature(self._index))
        elif isinstance(self._open, Call):
            self._open.is_closed = True
            if rest := self._open.rest:
                self.out.append(self._delta_start + _ENCODE.encode(rest) + events.DELTA_END)
        self.out.append(events.block_stop(self._index))
        self._open = None
        self._index += 1
