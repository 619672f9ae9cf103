# SPDX-License-Identifier: GPL-3.0-or-later
"""Reasoning and content, by tokens: whole, at every cut, token by token, and with text that lags."""

from collections.abc import Iterator, Sequence

import pytest

from neuron.host.engines.vllm_reasoning import (
    Known,
    Pair,
    Piece,
    Splitter,
    Start,
    count_reasoning,
    find_pair,
    read_start,
    read_tokenizer,
)

PAIR = Pair("<think>", "</think>", 1, 2)
TURN, STOP = 3, 4
# Tokens by their text; every other text is a token of no meaning.
KNOWN = {"<think>": 1, "</think>": 2, "<|turn|>": TURN, "</s>": STOP}
WORD = 9
BOUNDS = frozenset({TURN})


def ids(texts: Sequence[str]) -> list[int]:
    return [KNOWN.get(text, WORD) for text in texts]


@pytest.mark.parametrize(
    ("vocabulary", "pair"),
    [
        ({}, None),
        ({"<think>": 5}, None),
        ({"<think>": 5, "[THINK]": 6, "[/THINK]": 7}, Pair("[THINK]", "[/THINK]", 6, 7)),
        (
            {"<think>": 5, "</think>": 6, "[THINK]": 7, "[/THINK]": 8},
            Pair("<think>", "</think>", 5, 6),
        ),
        ({"<thought>": 1, "</thought>": 2}, Pair("<thought>", "</thought>", 1, 2)),
        ({"<reasoning>": 1, "</reasoning>": 2}, Pair("<reasoning>", "</reasoning>", 1, 2)),
    ],
)
def test_the_first_whole_pair_is_the_model_s(vocabulary: dict[str, int], pair: Pair | None) -> None:
    assert find_pair(vocabulary) == pair


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ([], Start.FREE),
        (["hello"], Start.FREE),
        (["hello", "<think>"], Start.OPEN),
        (["hello", "<think>", "\n"], Start.OPEN),
        (["hello", "<think>", "so far, "], Start.OPEN),
        (["hello", "<think>", "\n\n", "</think>", "\n\n"], Start.CLOSED),
        (["<think>", "old", "</think>", "next", "<think>"], Start.OPEN),
        (["what is ", "<think>", "?", "<|turn|>"], Start.FREE),  # a user asks about it
        (["what is ", "</think>", "?", "<|turn|>", "hm"], Start.FREE),
        (["what is ", "<think>", "?", "<|turn|>", "<think>", "\n"], Start.OPEN),
    ],
)
def test_how_generation_starts(prompt: list[str], start: Start) -> None:
    known = Known(PAIR, BOUNDS, {}, marker_is_special=False)
    assert read_start(ids(prompt), known) is start
    assert read_start(ids(prompt), known._replace(pair=None)) is Start.FREE


class Tokenizer:
    """As much of one as is looked at."""

    def __init__(self, special: list[str], added: dict[str, int]) -> None:
        self.all_special_tokens = special
        self._added = added

    def get_vocab(self) -> dict[str, int]:
        return {**self._added, "word": WORD}

    def get_added_vocab(self) -> dict[str, int]:
        return self._added


def test_what_a_tokenizer_tells() -> None:
    added = {**KNOWN, "   ": 7}
    assert read_tokenizer(Tokenizer(["</s>", "<unknown>"], added)) == Known(
        PAIR, frozenset({TURN, STOP}), {STOP: "</s>"}, marker_is_special=False
    )
    special = read_tokenizer(Tokenizer(["</s>", "<think>", "</think>"], added))
    assert special.marker_is_special
    assert special.special == {STOP: "</s>"}


@pytest.mark.parametrize(
    ("texts", "inside", "count"),
    [
        ([], False, 0),
        (["a", "b"], False, 0),
        (["a", "b"], True, 2),
        (["a", "</think>", "b"], True, 2),
        (["<think>", "a", "</think>", "b", "c"], False, 3),
        (["<think>", "a"], False, 2),
        (["a", "</think>", "b"], False, 2),  # it must have begun inside
        (["<think>", "a", "</think>", "b", "<think>", "c"], False, 5),
        (["<think>", "a", "</think>", "b", "</think>", "c"], False, 3),
    ],
)
def test_reasoning_is_counted_with_its_markers(texts: list[str], inside: bool, count: int) -> None:
    assert count_reasoning(ids(texts), PAIR, inside=inside) == count


def ways(texts: list[str]) -> Iterator[list[tuple[str, list[int]]]]:
    """Ways in which a stream may come."""
    yield [(text, ids([text])) for text in texts]
    for cut in range(len(texts) + 1):
        yield [("".join(part), ids(part)) for part in (texts[:cut], texts[cut:])]
    whole = "".join(texts)
    for lag in range(1, 12):
        pieces = []
        sent = 0
        for number, text in enumerate(texts):
            came = len("".join(texts[: number + 1]))
            end = max(sent, came - lag)
            pieces.append((whole[sent:end], ids([text])))
            sent = end
        yield [*pieces, (whole[sent:], [])]


def split(pieces: list[tuple[str, list[int]]], *, inside: bool) -> Piece:
    splitter = Splitter(PAIR, inside=inside, hidden={STOP: "</s>"})
    out = [
        splitter.feed(text, tokens, last=number == len(pieces) - 1)
        for number, (text, tokens) in enumerate(pieces)
    ]
    return Piece(
        "".join(piece.reasoning for piece in out),
        "".join(piece.content for piece in out),
        tuple(token for piece in out for token in piece.tokens),
    )


CASES: list[tuple[str, list[str], bool, str, str]] = [
    ("nothing", [], False, "", ""),
    ("no marker", ["a", "b"], False, "", "ab"),
    ("no marker, and begun inside", ["a", "b"], True, "ab", ""),
    ("the template's opener", ["a", "</think>", "b"], True, "a", "b"),
    ("the model's opener", ["<think>", "a", "</think>", "b"], False, "a", "b"),
    ("words before it", ["x", "<think>", "a", "</think>", "b"], False, "a", "xb"),
    ("the opener repeated", ["<think>", "a", "</think>", "b"], True, "a", "b"),
    ("cut off", ["<think>", "a"], False, "a", ""),
    ("cut off at the opener", ["<think>"], False, "", ""),
    ("nothing after it", ["<think>", "a", "</think>"], False, "a", ""),
    ("twice", ["<think>", "a", "</think>", "b", "<think>", "c", "</think>", "d"], False, "ac", "bd"),
    ("a closer too many", ["<think>", "a", "</think>", "b", "</think>", "c"], False, "a", "bc"),
    ("a marker spelled out", ["say ", "<thi", "nk> ", "now"], False, "", "say <think> now"),
    ("its beginning", ["a <", "b"], False, "", "a <b"),
    ("its beginning before it", ["a </th", "</think>", "b"], True, "a </th", "b"),
    ("white space around reasoning", ["<think>", "\n", " a\n", "b\n", "</think>", "\n", "\n b", "\n"], False, " a\nb", " b\n"),
    ("white space without reasoning", ["\n", "a", "\n"], False, "", "\na\n"),
    ("white space before reasoning", ["a\n", "<think>", "b", "</think>", "\nc"], False, "b", "a\n\nc"),
    ("tokens that are no text", ["a", "</s>", "b"], False, "", "ab"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "inside", "reasoning", "content"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_an_answer_is_split_however_it_comes(
    texts: list[str], inside: bool, reasoning: str, content: str
) -> None:
    for pieces in ways(texts):
        out = split(pieces, inside=inside)
        assert (out.reasoning, out.content) == (reasoning, content), pieces


def test_tokens_of_content_go_with_it() -> None:
    splitter = Splitter(PAIR, inside=True)
    assert splitter.feed("a</think>b", [9, 2, 8]) == Piece("a", "b", (8,))
    assert splitter.feed("c", [7]) == Piece("", "c", (7,))


def test_nothing_is_held_back_while_no_marker_is_due() -> None:
    splitter = Splitter(PAIR, inside=True)
    assert splitter.feed("a </th", [9]) == Piece("a </th")
    assert splitter.feed("", [2]) == Piece()
    assert splitter.feed("</th", []) == Piece()
    assert splitter.feed("ink>b", [9]) == Piece("", "b", (9,))


def test_a_closer_without_an_opener_says_that_it_began_inside() -> None:
    whole = Splitter(PAIR, inside=False)
    assert whole.feed("a</think>b", [9, 2, 8]) == Piece("a", "b", (8,))
    stream = Splitter(PAIR, inside=False)
    assert stream.feed("a", [9]) == Piece("", "a", (9,))  # too late to take back
    assert stream.feed("a</think>b", [9, 2, 8]) == Piece("a", "b", (8,))


def test_a_marker_s_text_that_never_comes_whole_is_text() -> None:
    splitter = Splitter(PAIR, inside=True)
    assert splitter.feed("a </th", [9, 2]) == Piece("a")
    assert splitter.feed("", [], last=True) == Piece(" </th")
