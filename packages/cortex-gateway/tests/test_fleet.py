# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the fleet changes with what neurons say, and with what we send."""

import pytest

from cortex_core.node import Health, ModelActivity
from cortex_core.testing import make_discovery, make_state
from cortex_gateway.fleet import KEPT_DECISIONS, Decided, Fleet, Report, Resident

M = make_state("m")


def make_fleet(*names: str) -> Fleet:
    return Fleet([(name, f"http://{name}") for name in names or ("a",)], misses=3)


def report(*states: str, running: int | None = None, uptime_s: float = 1.0) -> Report:
    activities = [ModelActivity(id="m", status="loaded", running=running or 0)]
    return Report(
        models=tuple(make_state(state) for state in states),
        health=None if running is None else Health(uptime_secs=uptime_s, models=activities),
    )


def busy(fleet: Fleet) -> int:
    view = fleet.view()
    return view.replica(Resident(view.node("a"), M)).busy


def test_a_node_is_down_after_three_misses_in_a_row_and_up_after_one_answer() -> None:
    fleet = make_fleet()
    assert not fleet.node("a").is_up
    assert fleet.apply_report("a", report("m"), 1.0) is True
    assert fleet.apply_report("a", report("m"), 2.0) is False
    assert [fleet.apply_miss("a") for _ in range(2)] == [False, False]
    assert fleet.node("a").is_up
    fleet.apply_report("a", report("m"), 3.0)
    assert [fleet.apply_miss("a") for _ in range(4)] == [False, False, True, False]
    assert not fleet.node("a").is_up
    assert fleet.apply_report("a", report("m"), 9.0) is True
    assert (fleet.node("a").is_up, fleet.node("a").misses) == (True, 0)


def test_a_node_that_was_never_seen_does_not_go_down() -> None:
    fleet = make_fleet()
    assert [fleet.apply_miss("a") for _ in range(5)] == [False] * 5
    assert not fleet.node("a").was_seen


def test_what_a_node_that_is_down_has_is_history() -> None:
    fleet = make_fleet()
    fleet.apply_report("a", report("m"), 1.0)
    for _ in range(3):
        fleet.apply_miss("a")
    view = fleet.view()
    assert view.residents("m") == []
    assert view.node("a").state("m") is None
    assert view.lost("m") == ["a"]


def test_a_view_does_not_change() -> None:
    fleet = make_fleet()
    before = fleet.view()
    fleet.apply_report("a", report("m"), 1.0)
    fleet.note_load_begun(("a", "n"))
    with fleet.serving("a", "m"):
        assert (before.nodes[0].is_up, before.in_flight, before.loads) == (False, {}, frozenset())
        now = fleet.view()
        assert now.in_flight == {("a", "m"): 1}
        assert now.loads == frozenset({("a", "n")})
    fleet.note_load_ended(("a", "n"))
    assert fleet.view().loads == frozenset()


def test_what_is_in_flight_is_counted_whatever_its_end() -> None:
    fleet = make_fleet()

    def break_off() -> None:
        with fleet.serving("a", "m"), fleet.serving("a", "m"):
            assert fleet.view().in_flight == {("a", "m"): 2}
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert fleet.view().in_flight == {}


def test_a_replica_is_as_busy_as_it_said_and_what_we_sent_and_saw_end_since() -> None:
    fleet = make_fleet()
    with fleet.serving("a", "m"):
        fleet.apply_report("a", report("m", running=5), 1.0)  # one of the five is ours
        assert busy(fleet) == 5
        with fleet.serving("a", "m"):
            assert busy(fleet) == 6
        assert busy(fleet) == 5
    assert busy(fleet) == 4
    fleet.apply_report("a", report("m", running=0), 2.0)
    assert busy(fleet) == 0


def test_a_count_of_the_neuron_that_is_behind_does_not_hide_what_we_sent() -> None:
    fleet = make_fleet()
    with fleet.serving("a", "m"), fleet.serving("a", "m"):
        fleet.apply_report("a", report("m", running=0), 1.0)
        assert busy(fleet) == 2


def test_what_a_node_is_is_asked_again_after_it_was_down_or_restarted() -> None:
    fleet = make_fleet()
    found = make_discovery()
    first = Report(models=(), discovery=found, health=Health(uptime_secs=100))
    fleet.apply_report("a", first, 1.0)
    assert fleet.node("a").is_discovered
    fleet.apply_report("a", report(running=0, uptime_s=105), 2.0)
    assert fleet.node("a").is_discovered
    fleet.apply_report("a", report(running=0, uptime_s=2), 3.0)
    assert not fleet.node("a").is_discovered
    assert fleet.node("a").discovery == found
    fleet.apply_report("a", first, 4.0)
    for _ in range(3):
        fleet.apply_miss("a")
    assert not fleet.node("a").is_discovered


def test_turns_are_counted_and_forgotten_with_their_model() -> None:
    fleet = make_fleet()
    fleet.apply_report("a", report("m", "n"), 1.0)
    for model in ("m", "n", "m"):
        with fleet.serving("a", model):
            pass
    assert fleet.view().turns == {("a", "m"): 3, ("a", "n"): 2}
    fleet.apply_report("a", report("n"), 2.0)
    assert fleet.view().turns == {("a", "n"): 2}


def test_decisions_are_kept_newest_first_and_bounded() -> None:
    fleet = make_fleet()
    for number in range(KEPT_DECISIONS + 5):
        fleet.note_decision(
            Decided(at=float(number), request_id=str(number), model="m", decision="serve")
        )
    kept = [decided.request_id for decided in fleet.decisions]
    assert kept == [str(number) for number in range(KEPT_DECISIONS + 4, 4, -1)]
