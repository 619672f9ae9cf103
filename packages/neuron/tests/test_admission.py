# SPDX-License-Identifier: GPL-3.0-or-later
"""Who runs, who waits and who is refused: cases first, then random arrivals, ends, leavers and limits."""

import itertools
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cortex_core.errors import BusyError, QueueFullError, RateLimitExceededError
from neuron.admission import Admission, Place, Stage, TurnedAwayError
from neuron.config import AdmissionSettings

PRINCIPALS = "abc"


class Line:
    """An admission, and who was woken, in order."""

    def __init__(self, **limits: int | None) -> None:
        self.admission = Admission(AdmissionSettings(**limits))  # type: ignore[arg-type]
        self.woken: list[str] = []
        self.places: dict[str, Place] = {}

    def enter(self, *names: str) -> None:
        """`a1` is the first request of `a`."""
        for name in names:
            wake = self._wake(name)
            self.places[name] = self.admission.enter("m", name[0], wake)

    def _wake(self, name: str) -> "Waking":
        return Waking(self.woken, name)

    def leave(self, *names: str) -> None:
        for name in names:
            self.admission.leave(self.places[name])

    def at(self, stage: Stage) -> str:
        return " ".join(name for name, place in self.places.items() if place.stage is stage)

    @property
    def counts(self) -> tuple[int, int]:
        return self.admission.running, self.admission.waiting


class Waking:
    def __init__(self, woken: list[str], name: str) -> None:
        self._woken = woken
        self._name = name

    def __call__(self) -> None:
        self._woken.append(self._name)


def test_without_limits_everybody_runs() -> None:
    line = Line()
    line.enter(*(f"a{n}" for n in range(1000)))
    assert line.counts == (1000, 0)


def test_a_place_that_is_freed_goes_to_the_next_at_once() -> None:
    line = Line(max_running=1)
    line.enter("a1", "a2", "a3")
    assert (line.at(Stage.RUNNING), line.at(Stage.WAITING)) == ("a1", "a2 a3")
    line.leave("a1")
    assert (line.at(Stage.RUNNING), line.woken) == ("a2", ["a2"])
    line.leave("a2", "a3")
    assert line.counts == (0, 0)


def test_principals_take_turns_and_each_is_served_in_order() -> None:
    line = Line(max_running=1)
    line.enter("x0", "a1", "a2", "a3", "a4", "b1", "b2", "c1")
    for name in ("x0", "a1", "b1", "c1", "a2", "b2", "a3"):
        line.leave(name)
    assert line.woken == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_burst_of_two_hundred_does_not_hold_up_another_s_single_request() -> None:
    line = Line(max_running=4)
    line.enter(*(f"a{n}" for n in range(200)), "b1")
    line.leave("a0", "a1")
    assert line.places["b1"].stage is Stage.RUNNING


def test_who_waits_and_leaves_gives_the_place_back() -> None:
    line = Line(max_running=1, max_waiting=2)
    line.enter("a1", "a2", "b1")
    line.leave("a2", "a2")  # twice is once
    assert line.counts == (1, 1)
    line.enter("a3")
    line.leave("a1")
    assert (line.woken, line.counts) == (["b1"], (1, 1))


def test_who_leaves_in_the_instant_of_its_turn_gives_the_place_to_the_next() -> None:
    line = Line(max_running=1)
    line.enter("a1", "a2", "a3")
    line.leave("a1")  # a2 has its turn, and has not been told yet
    line.leave("a2")
    assert (line.at(Stage.RUNNING), line.counts) == ("a3", (1, 0))


def test_the_fullest_line_gives_way_to_who_has_none() -> None:
    line = Line(max_running=1, max_waiting=3)
    line.enter("a1", "a2", "a3", "b1", "c1")
    assert (line.at(Stage.OUT), line.woken, line.counts) == ("a3", ["a3"], (1, 3))
    assert line.places["a3"].gave_way
    for name in ("d1", "b2"):  # each line has one; who has one has had a place
        with pytest.raises(QueueFullError):
            line.enter(name)
    line.leave("a3", "a1", "a2", "b1")
    assert line.woken == ["a3", "a2", "b1", "c1"]


@pytest.mark.parametrize(
    ("limits", "there", "comes", "kind", "retry_after_s"),
    [
        ({"max_running": 1, "max_waiting": 0}, 1, "b", QueueFullError, 1),
        ({"max_running": 1, "max_waiting": 3}, 4, "a", QueueFullError, 6),
        ({"max_running": 1, "max_waiting": 100}, 101, "a", QueueFullError, 120),
        ({"max_running": 1, "max_per_principal": 3}, 3, "a", RateLimitExceededError, 4),
        ({"max_per_principal": 3}, 3, "a", RateLimitExceededError, 1),
    ],
)
def test_a_refusal_says_when_to_come_again(
    limits: dict[str, int], there: int, comes: str, kind: type[BusyError], retry_after_s: float
) -> None:
    line = Line(**limits)
    line.enter(*(f"a{n}" for n in range(there)))
    before = line.counts
    with pytest.raises(kind) as caught:
        line.enter(f"{comes}9")
    assert (type(caught.value), caught.value.retry_after_s) == (kind, retry_after_s)
    assert line.counts == before


def test_the_cap_of_one_is_not_the_cap_of_another() -> None:
    line = Line(max_running=1, max_per_principal=1)
    line.enter("a1", "b1")
    with pytest.raises(RateLimitExceededError, match="1 requests for 'm'"):
        line.enter("a2")
    line.leave("a1")
    line.enter("a2")
    assert (line.at(Stage.RUNNING), line.at(Stage.WAITING)) == ("b1", "a2")


def test_more_room_is_given_out_at_once() -> None:
    line = Line(max_running=1)
    line.enter("a1", "a2", "a3")
    line.admission.apply_settings(AdmissionSettings(max_running=2))
    assert line.woken == ["a2"]
    line.admission.apply_settings(AdmissionSettings())
    assert line.woken == ["a2", "a3"]


def test_turning_away_empties_the_lines_and_leaves_what_runs() -> None:
    line = Line(max_running=1)
    line.enter("a1", "a2", "b1")
    line.admission.turn_away()
    assert (line.at(Stage.OUT), line.woken, line.counts) == ("a2 b1", ["a2", "b1"], (1, 0))
    line.leave("a2", "b1")  # as they do when they wake
    line.enter("c1")
    line.leave("a1")
    assert (line.at(Stage.RUNNING), line.counts) == ("c1", (1, 0))


def test_a_closed_line_takes_nobody() -> None:
    line = Line(max_running=1)
    line.enter("a1", "a2")
    line.admission.close()
    assert line.woken == ["a2"]
    with pytest.raises(TurnedAwayError):
        line.enter("b1")
    line.leave("a1")
    assert line.counts == (0, 0)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: bounds hold, nobody is lost, turns are fair."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = AdmissionSettings(max_running=2, max_waiting=4, max_per_principal=3)
        self.admission = Admission(self.settings)
        self.places: list[Place] = []
        self.woken: Counter[int] = Counter()
        self.numbers = itertools.count()
        # Of each that waits: how many of its own came before it, and how often others had their turn since.
        self.ahead: dict[Place, int] = {}
        self.closed = False
        self.passed: dict[Place, Counter[str]] = {}

    @rule(principal=st.sampled_from(PRINCIPALS))
    def arrives(self, principal: str) -> None:
        held = sum(place.principal == principal for place in self.places)
        waiting = sum(place.stage is Stage.WAITING for place in self.places)
        number = next(self.numbers)

        def wake() -> None:
            self.woken[number] += 1

        try:
            place = self.admission.enter("m", principal, wake)
        except TurnedAwayError:
            assert self.closed
        except RateLimitExceededError:
            assert held >= (self.settings.max_per_principal or held + 1)
        except QueueFullError:
            assert waiting >= self.settings.max_waiting
        else:
            assert held < (self.settings.max_per_principal or held + 1)
            self.places.append(place)
            if place.stage is Stage.WAITING:
                self.ahead[place] = sum(other.principal == principal for other in self.passed)
                self.passed[place] = Counter()
        for place in self._those_away_leave():
            assert place.gave_way
            assert place.principal != principal

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 99))
    def leaves(self, which: int) -> None:
        """Ends, or gives up waiting: it is the same."""
        place = self.places.pop(which % len(self.places))
        self.passed.pop(place, None)
        self.admission.leave(place)
        assert place.stage is Stage.OUT
        self._note_turns()

    @rule(
        max_running=st.sampled_from([1, 2, 3]),
        max_waiting=st.integers(0, 6),
        cap=st.sampled_from([None, 1, 3]),
    )
    def limits_change(self, max_running: int, max_waiting: int, cap: int | None) -> None:
        running = self.admission.running
        self.settings = AdmissionSettings(
            max_running=max(running, max_running), max_waiting=max_waiting, max_per_principal=cap
        )
        self.admission.apply_settings(self.settings)
        self._note_turns()

    @precondition(lambda self: len(self.places) > 4)
    @rule()
    def the_engine_takes_no_more(self) -> None:
        self.closed = True
        self.admission.close()
        self._those_away_leave()

    @rule()
    def all_are_turned_away(self) -> None:
        self.admission.turn_away()
        self._those_away_leave()

    def _those_away_leave(self) -> list[Place]:
        away = [place for place in self.places if place.stage is Stage.OUT]
        for place in away:
            self.places.remove(place)
            self.passed.pop(place)
            self.admission.leave(place)
        return away

    def _note_turns(self) -> None:
        """Those who have their turn now passed everybody who still waits."""
        turns = [place for place in self.passed if place.stage is Stage.RUNNING]
        for turn in turns:
            del self.passed[turn]
        for place, passed in self.passed.items():
            passed.update(turn.principal for turn in turns if turn.principal != place.principal)

    @invariant()
    def counts_are_true(self) -> None:
        running = [place for place in self.places if place.stage is Stage.RUNNING]
        waiting = [place for place in self.places if place.stage is Stage.WAITING]
        assert (self.admission.running, self.admission.waiting) == (len(running), len(waiting))
        assert len(running) <= (self.settings.max_running or 0)
        assert not waiting or len(running) == self.settings.max_running, "a place is free"
        assert all(count == 1 for count in self.woken.values()), "woken twice"

    @invariant()
    def others_have_one_turn_for_each_of_ours(self) -> None:
        for place, passed in self.passed.items():
            assert all(count <= self.ahead[place] + 1 for count in passed.values())

    def teardown(self) -> None:
        for place in self.places:
            self.admission.leave(place)
        assert (self.admission.running, self.admission.waiting) == (0, 0)
        assert not self.admission._held
        assert not self.admission._lines


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = pytest.mark.slow(AnyOrder.TestCase)
