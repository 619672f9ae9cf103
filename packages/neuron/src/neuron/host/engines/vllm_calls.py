# SPDX-License-Identifier: GPL-3.0-or-later
"""What vLLM's tool parsers leave out, or tell wrongly: blocks that are broken or cut off, calls that came too fast. Pure.

A block that cannot be read is text, and goes out as the model wrote it. A stream has in the end told what the whole
answer would have told; only of a call that it had begun before the block broke it keeps what it told.
"""

import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from neuron.host.engines.vllm_parsers import CallFormat


class Call(NamedTuple):
    """A tool call. `arguments` is JSON; `id` None: one is made up."""

    name: str
    arguments: str
    id: str | None = None


class Part(NamedTuple):
    """A part of a call in a stream. `number` counts calls from 0; `name` and `id`: only where one begins."""

    number: int
    name: str | None
    arguments: str
    id: str | None = None


class Whole(NamedTuple):
    """What a whole answer says."""

    content: str | None
    calls: tuple[Call, ...] = ()


class Last(NamedTuple):
    """What goes out with the end of a stream."""

    content: str
    parts: tuple[Part, ...]


def read_whole(said: str, read: Callable[[str], Whole], form: CallFormat | None) -> Whole:
    """A whole answer as vLLM's parser reads it, with every block that is no sound call as text.

    Args:
        said: what the model wrote, without reasoning.
        read: vLLM's parser.
        form: how calls are written; None: not known.
    """
    starts = _find_starts(said, form)
    # A block that breaks the parser must not take those before it along.
    found = read(said)
    for end in reversed(starts[1:]):
        if found.calls:
            break
        found = read(said[:end])
    blocks = [said[i:j] for i, j in zip(starts, [*starts[1:], len(said)], strict=False)]
    sound = 0
    while sound < len(found.calls) and _is_sound(
        found.calls[sound], blocks[sound : sound + 1], form
    ):
        sound += 1
    if not sound:
        return Whole(said or None)
    content = (found.content or "") + _find_unread(said, sound, form)
    return Whole(content or None, found.calls[:sound])


def _find_starts(said: str, form: CallFormat | None) -> list[int]:
    if form is None:
        return []
    before = said.split(form.opener)[:-1]
    ends = accumulate(len(text) + len(form.opener) for text in before)
    return [end - len(form.opener) for end in ends]


def _find_unread(said: str, read: int, form: CallFormat | None) -> str:
    """The text from the first block on that is not among the first so many."""
    starts = _find_starts(said, form)
    return said[starts[read] :] if read < len(starts) else ""


def _is_sound(call: Call, block: Sequence[str], form: CallFormat | None) -> bool:
    ended = form is None or not block or form.closer in block[0]
    return ended and call.name != "" and _is_json(call.arguments)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class Told:
    """What a stream has told so far."""

    def __init__(self) -> None:
        self._content = ""
        # Of each call that it has begun, in order.
        self._arguments: list[str] = []

    def choose(self, content: str, parts: Sequence[Part]) -> list[bool]:
        """Note what goes out; of the parts those that may: calls begin in order, each with its name."""
        self._content += content
        return [self._note(part) for part in parts]

    def _note(self, part: Part) -> bool:
        if part.name and part.number == len(self._arguments):
            self._arguments.append("")
        elif part.name or part.number >= len(self._arguments):
            return False
        self._arguments[part.number] += part.arguments
        return True

    def finish(
        self, content: str, parts: Sequence[Part], said: str, whole: Whole, form: CallFormat | None
    ) -> Last:
        """What goes out with the end of the stream.

        Args:
            content: what vLLM's parser would add to the content.
            parts: what it would add of calls.
            said: all that the model wrote, without reasoning.
            whole: what that says.
            form: how calls are written.
        """
        begun = len(self._arguments)
        new = [
            Part(number, call.name, call.arguments, call.id)
            for number, call in enumerate(whole.calls)
            if number >= begun
        ]
        if not begun:
            return Last(_after(self._content, whole.content or "", content), tuple(new))
        rests = [self._end(number, parts, whole) for number in range(begun)]
        ends = [Part(number, None, rest) for number, rest in enumerate(rests) if rest]
        self._content += content
        return Last(content + self._find_untold(said, rests, whole, form), (*ends, *new))

    def _end(self, number: int, parts: Sequence[Part], whole: Whole) -> str:
        """The rest of a call's arguments."""
        told = self._arguments[number]
        added = "".join(part.arguments for part in parts if part.number == number)
        if _is_json(told):
            return ""
        if number < len(whole.calls):
            known = whole.calls[number].arguments
            return added if _is_json(told + added) else _after(told, known, added)
        # The call was cut off: nothing may make it look whole.
        return "" if _is_json(told + added) else added

    def _find_untold(
        self, said: str, rests: Sequence[str], whole: Whole, form: CallFormat | None
    ) -> str:
        """The text that was swallowed, and that of the blocks of which no call tells."""
        begun = len(self._arguments)
        otherwise = _find_unread(said, max(begun, len(whole.calls)), form)
        if begun <= len(whole.calls):
            return _after(self._content, whole.content or "", otherwise)
        if self._arguments[-1] + rests[-1]:
            return otherwise
        # Of the call that was cut off nothing but the name is told.
        unread = _find_unread(said, begun - 1, form)
        return unread if form else _after(self._content, said, "")


def _after(told: str, expected: str, otherwise: str) -> str:
    """What is missing of the expected text."""
    return expected[len(told) :] if expected.startswith(told) else otherwise
