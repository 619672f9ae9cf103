# SPDX-License-Identifier: GPL-3.0-or-later
"""What `tools/bench` makes of its figures: ratios, verdicts, a table on a terminal and in a document."""

import pytest
from bench import rows, table
from bench.figures import Bounds, Measured, Verdict, judge, spread
from bench.page import UnmarkedError, replace_marked
from bench.table import Row

FAST = Bounds(must=0.95, goal=1.0, is_floor=True)
SHORT = Bounds(must=1 / 4, goal=1 / 8)
PAGE = "before\n<!-- a: begin -->\nold\n<!-- a: end -->\nafter\n"


@pytest.mark.parametrize(
    ("found", "bounds", "worth"),
    [
        (1.0, FAST, Verdict.GOAL),
        (0.99, FAST, Verdict.MUST),
        (0.95, FAST, Verdict.MUST),
        (0.94, FAST, Verdict.NOT_MET),
        (0.125, SHORT, Verdict.GOAL),
        (0.13, SHORT, Verdict.MUST),
        (0.25, SHORT, Verdict.MUST),
        (0.26, SHORT, Verdict.NOT_MET),
        (7.0, None, Verdict.TOLD),
    ],
)
def test_a_figure_is_held_against_its_bounds(
    found: float, bounds: Bounds | None, worth: Verdict
) -> None:
    assert judge(found, bounds) == worth


def test_a_ratio_is_of_figures_of_the_same_round() -> None:
    """Here the machine was three times as slow in the second round, and a quarter slower for us in the third."""
    measured = Measured(ours=[1.0, 3.0, 1.25], theirs=[2.0, 6.0, 2.0])
    assert measured.ratio == 0.5
    assert (measured.our_median, measured.their_median) == (1.25, 2.0)


def test_the_spread_is_a_share_of_the_median() -> None:
    assert spread([2.0, 1.0, 4.0]) == 1.5
    assert spread([2.0]) == 0.0


def test_one_bound_that_is_not_kept_is_enough() -> None:
    kept, missed = Measured(ours=[1.0], theirs=[4.0]), Measured(ours=[2.0], theirs=[4.0])
    load = next(row for row in ROWS if row.key == "load")
    told = next(row for row in ROWS if row.key == "ttft")
    assert not table.is_missed([load, told], {"load": kept, "ttft": missed})
    assert table.is_missed([told, load], {"load": missed, "ttft": kept})
    assert not table.is_missed([load], {"load": Measured(missing="no engine")})
    assert not table.is_missed([load], {})


ROWS = [
    Row(key="pace", part="streams", label="tokens/s", unit="tokens/s", bounds=FAST),
    Row(key="load", part="load", label="load", unit="s", bounds=SHORT),
    Row(
        key="start", part="start", label="start", unit="s", is_ratio=False,
        bounds=Bounds(must=1.0, goal=0.5),
    ),
    Row(key="ttft", part="streams", label="TTFT", unit="ms"),
    Row(key="wake", part="wake", label="wake", unit="s", bounds=SHORT),
    Row(key="left_out", part="other", label="left out", unit="s"),
]  # fmt: skip
FOUND = {
    "pace": Measured(ours=[190.0, 210.0, 200.0], theirs=[200.0, 200.0, 205.0]),
    "load": Measured(ours=[2.0], theirs=[20.0]),
    "start": Measured(ours=[0.7]),
    "ttft": Measured(ours=[0.01234], theirs=[0.01]),
    "wake": Measured(missing="no GPU"),
}
CELLS = [
    ["tokens/s", "200 tokens/s", "200 tokens/s", "0.98x", "10%", ">= 0.95x", ">= 1x", "must met"],
    ["load", "2 s", "20 s", "0.10x", "0%", "<= 1/4", "<= 1/8", "goal met"],
    ["start", "0.7 s", "", "", "0%", "<= 1 s", "<= 0.5 s", "must met"],
    ["TTFT", "12.3 ms", "10 ms", "1.23x", "0%", "", "", "for information"],
    ["wake", "", "", "", "", "<= 1/4", "<= 1/8", "not run: no GPU"],
]


def test_a_table_has_a_line_per_figure_that_was_asked_for() -> None:
    assert table.build_cells(ROWS, FOUND) == CELLS


def test_a_table_is_aligned_on_a_terminal() -> None:
    assert table.write_text(CELLS[1:3]).splitlines() == [
        "figure   ours  against  ratio  spread    must      goal  result",
        "load      2 s     20 s  0.10x      0%  <= 1/4    <= 1/8  goal met",
        "start   0.7 s                      0%  <= 1 s  <= 0.5 s  must met",
    ]


def test_a_table_is_a_table_in_a_document() -> None:
    assert table.write_markdown(CELLS[1:2]).splitlines() == [
        "| figure | ours | against | ratio | spread | must | goal | result |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        "| load | 2 s | 20 s | 0.10x | 0% | <= 1/4 | <= 1/8 | goal met |",
    ]


def test_machines_are_given_each_round() -> None:
    pace, *_, wake = table.write_values(ROWS, FOUND)
    assert pace == {
        "key": "pace",
        "label": "tokens/s",
        "ours": [190.0, 210.0, 200.0],
        "against": [200.0, 200.0, 205.0],
        "ratio": 200 / 205,
        "must": 0.95,
        "goal": 1.0,
        "result": "must met",
        "missing": None,
    }
    assert (wake["ratio"], wake["result"], wake["missing"]) == (None, "not run", "no GPU")


def test_each_row_of_the_neuron_has_its_own_key_and_a_part_that_measures_it() -> None:
    listed = rows.build_rows()
    assert len({row.key for row in listed}) == len(listed)
    assert {row.part for row in listed} == {"streams", "load", "death", "start", "wake"}


def test_a_document_gets_its_table_between_the_marks() -> None:
    once = replace_marked(PAGE, "a", "new\n")
    assert once == "before\n<!-- a: begin -->\n\nnew\n\n<!-- a: end -->\nafter\n"
    assert replace_marked(once, "a", "new") == once


@pytest.mark.parametrize(
    "page", ["", "<!-- a: begin -->", "<!-- a: end --><!-- a: begin -->", PAGE * 2]
)
def test_a_document_without_a_place_for_it_is_left_alone(page: str) -> None:
    with pytest.raises(UnmarkedError, match="a: begin"):
        replace_marked(page, "a", "new")
