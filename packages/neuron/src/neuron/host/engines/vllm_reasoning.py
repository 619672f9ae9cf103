# SPDX-License-Identifier: GPL-3.0-or-later
"""What of an answer is reasoning: told by the tokenizer's own markers, whole or piece by piece. Pure.

Tokens decide, not text: an answer may well speak of `<think>`. The text of a token comes with it or later
(a stop word's beginning is held back), never before.
"""

import functools
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from neuron.host.engines.vllm_parsers import THINKING
from neuron.host.engines.vllm_text import Text


class Pair(NamedTuple):
    """The markers around a model's reasoning, as texts and as tokens."""

    opener: str
    closer: str
    opener_id: int
    closer_id: int


class Piece(NamedTuple):
    """A piece of an answer, taken apart. `tokens` are the content's."""

    reasoning: str = ""
    content: str = ""
    tokens: tuple[int, ...] = ()


def find_pair(vocabulary: Mapping[str, int]) -> Pair | None:
    """The first pair of which each marker is one token; None: the model does not think."""
    for opener, closer in THINKING:
        if opener in vocabulary and closer in vocabulary:
            return Pair(opener, closer, vocabulary[opener], vocabulary[closer])
    return None


class Known(NamedTuple):
    """What is to be known of a tokenizer.

    Attributes:
        pair: around reasoning; None: the model does not think.
        bounds: tokens that begin or end a turn. A marker beyond them is something that a user wrote.
        special: those that are no text, markers not included, with the texts they have all the same.
        marker_is_special: so that text would come without it.
    """

    pair: Pair | None
    bounds: frozenset[int]
    special: Mapping[int, str]
    marker_is_special: bool


@functools.lru_cache(maxsize=4)
def read_tokenizer(tokenizer: Any) -> Known:
    """What is to be known; read once, since a vocabulary is long."""
    vocabulary = tokenizer.get_vocab()
    pair = find_pair(vocabulary)
    markers = {pair.opener, pair.closer} if pair else set()
    special = {text for text in tokenizer.all_special_tokens if text in vocabulary}
    added: Mapping[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    # Some tokenizers add runs of white space, which bound nothing.
    bounds = special | {text for text in added if text.strip()}
    return Known(
        pair,
        frozenset(vocabulary[text] for text in bounds - markers),
        {vocabulary[text]: text for text in special - markers},
        bool(special & markers),
    )


class Start(Enum):
    """How generation starts."""

    OPEN = "inside reasoning"
    CLOSED = "behind reasoning: it was turned off"
    FREE = "the model may open it"


def read_start(prompt: Sequence[int], known: Known) -> Start:
    """How generation starts: by the last marker of the turn that the rendered prompt begins."""
    pair = known.pair
    for token in reversed(prompt):
        if pair is None or token in known.bounds:
            break
        if token == pair.opener_id:
            return Start.OPEN
        if token == pair.closer_id:
            return Start.CLOSED
    return Start.FREE


def count_reasoning(tokens: Sequence[int], pair: Pair, *, inside: bool) -> int:
    """Tokens of reasoning, its markers among them.

    Args:
        tokens: the answer's.
        pair: the markers.
        inside: whether the prompt left reasoning open.
    """
    markers = (token for token in tokens if token in (pair.opener_id, pair.closer_id))
    inside = inside or next(markers, None) == pair.closer_id
    count = 0
    for token in tokens:
        inside = inside or token == pair.opener_id
        count += inside
        inside = inside and token != pair.closer_id
    return count


class Splitter:
    """Takes one answer apart as it comes.

    A closer without an opener, in an answer that did not start inside, says that it did: what has not gone
    out by then is reasoning. So a whole answer, fed at once, is always right.

    Args:
        pair: the markers.
        inside: whether the prompt left reasoning open.
        hidden: other tokens whose text is to be left out, and the texts.
    """

    def __init__(
        self, pair: Pair, *, inside: bool, hidden: Mapping[int, str] | None = None
    ) -> None:
        self._pair = pair
        self._texts = {
            **(hidden or {}),
            pair.opener_id: pair.opener,
            pair.closer_id: pair.closer,
        }
        self._text_inside = self._tokens_inside = inside
        self._text_marked = self._tokens_marked = inside
        # Tokens that have come, and their texts not yet.
        self._due: deque[int] = deque()
        self._held = ""
        self._reasoning = Text(trim_start=True)
        self._began = False

    def feed(self, text: str, tokens: Sequence[int], *, last: bool = False) -> Piece:
        """Take a piece; return what may go out, with the last all of it.

        White space that parts reasoning from its markers, and line ends between it and the content, are neither's.
        """
        content_tokens = self._read_tokens(tokens)
        # Content and reasoning, by whether the text is inside.
        out = ["", ""]
        rest = self._held + text
        while self._due:
            before, found, after = rest.partition(self._texts[self._due[0]])
            if not found:
                break
            out[self._text_inside] += before
            rest = after
            self._pass(self._due.popleft(), out)
        held = _overlap(rest, self._texts[self._due[0]]) if self._due and not last else 0
        cut = len(rest) - held
        out[self._text_inside] += rest[:cut]
        self._held = rest[cut:]
        return Piece(self._reasoning.feed(out[True]), self._trim(out[False]), content_tokens)

    def _trim(self, content: str) -> str:
        if self._text_marked and not self._began:
            content = content.lstrip("\r\n")
        self._began = self._began or content != ""
        return content

    def _read_tokens(self, tokens: Sequence[int]) -> tuple[int, ...]:
        content: list[int] = []
        for token in tokens:
            if token in self._texts:
                self._due.append(token)
            if token == self._pair.opener_id:
                self._tokens_inside = self._tokens_marked = True
            elif token == self._pair.closer_id:
                if not self._tokens_marked:
                    content.clear()
                self._tokens_inside, self._tokens_marked = False, True
            elif not self._tokens_inside:
                content.append(token)
        return tuple(content)

    def _pass(self, token: int, out: list[str]) -> None:
        """Go on behind a token's text."""
        if token == self._pair.closer_id and not self._text_marked:
            out[True], out[False] = out[False], ""
        if token in (self._pair.opener_id, self._pair.closer_id):
            self._text_inside = token == self._pair.opener_id
            self._text_marked = True


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of the text may be the marker's beginning."""
    lengths = range(min(len(text), len(marker) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(marker[:n])), 0)
