# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the fleet changes with what neurons say, and with what we send."""

import pytest

from cortex_core.node import Health, ModelActivity
from cortex_core.testing import make_discovery, make_state
from cortex_gateway.fleet import KEPT_DECISIONS, Decided, Fleet, Report
from cortex_gateway.view import EVERYWHERE, Needs, Queued, Resident

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
        assert (before.nodes[0].is_up, before.in_flight, before.loads) == (False, {}, {})
        now = fleet.view()
        assert now.in_flight == {("a", "m"): 1}
        assert now.loads == {("a", "n"): {}}
    fleet.note_load_ended(("a", "n"))
    assert fleet.view().loads == {}


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


def test_what_came_up_while_we_looked_has_a_time_and_what_was_up_is_old() -> None:
    fleet = make_fleet()
    fleet.apply_report("a", report("old"), 1.0)
    fleet.apply_report("a", report("old", "new"), 2.0)
    fleet.apply_report("a", report("old", "new"), 3.0)
    assert fleet.view().up_s == {("a", "new"): 2.0}
    asleep = Report(models=(make_state("old"), make_state("new", "sleeping")))
    fleet.apply_report("a", asleep, 4.0)
    assert fleet.view().up_s == {}
    fleet.apply_report("a", report("old", "new"), 5.0)
    assert fleet.view().up_s == {("a", "new"): 5.0}
    fleet.apply_report("a", report("old"), 6.0)
    assert fleet.view().up_s == {}


def test_what_a_model_had_when_it_was_up_is_remembered() -> None:
    fleet = make_fleet()
    fleet.apply_report("a", Report(models=(make_state("m", vram_used_mb=7),)), 1.0)
    asleep = make_state("m", "sleeping", vram_used_mb=1)
    fleet.apply_report("a", Report(models=(asleep,)), 2.0)
    fleet.apply_report("a", report(), 3.0)
    assert fleet.view().measured_mb == {("a", "m"): 7}


def test_the_last_use_is_the_end_of_the_last_request() -> None:
    fleet = make_fleet()
    fleet.apply_report("a", report("m"), 1.0)
    with fleet.serving("a", "m", lambda: 5.0):
        assert fleet.view().used_s == {}
        assert fleet.in_flight(("a", "m")) == 1
    assert fleet.view().used_s == {("a", "m"): 5.0}
    fleet.apply_report("a", report(), 6.0)
    assert fleet.view().used_s == {}


def test_who_is_held_and_who_waits_for_room_is_counted_and_the_oldest_counts_for_all() -> None:
    fleet = make_fleet()
    with fleet.holding("m"), fleet.holding("m"), fleet.queueing("m", 5.0, ["a"]):
        with fleet.queueing("m", 4.0, ["b"]):
            queued = Queued(since_s=4.0, nodes=frozenset("b"))
            assert (fleet.view().held, fleet.view().queued) == ({"m": 2}, {"m": queued})
        assert fleet.view().queued == {"m": Queued(since_s=5.0, nodes=frozenset("a"))}
    assert (fleet.view().held, fleet.view().queued) == ({}, {})


def test_who_makes_room_for_a_load_serves_nothing_until_that_has_ended() -> None:
    fleet = make_fleet()
    fleet.apply_report("a", report("m", "x"), 1.0)

    def serving() -> list[str]:
        view = fleet.view()
        return [r.state.id for r in [*view.residents("m"), *view.residents("x")] if view.serves(r)]

    fleet.note_load_begun(("a", "n"), {0: 5})
    fleet.note_leaving(("a", "n"), [("a", "m"), ("a", "x")])
    assert serving() == []
    fleet.note_leaving(("a", "n"), [("a", "x")])
    assert serving() == ["m"]
    with fleet.moving(("a", "m")):
        assert serving() == []
    fleet.note_load_ended(("a", "n"))
    assert serving() == ["m", "x"]
    fleet.note_drain("a", drained=True)
    assert serving() == []
    fleet.note_drain("a", drained=False)
    assert serving() == ["m", "x"]


def test_a_pin_is_of_one_node_or_of_all() -> None:
    fleet = make_fleet()
    fleet.note_pin(("a", "m"), pinned=True)
    fleet.note_pin((EVERYWHERE, "x"), pinned=True)
    view = fleet.view()
    assert [view.is_pinned(n, m) for n in "ab" for m in "mx"] == [True, True, False, True]
    fleet.note_pin(("a", "m"), pinned=False)
    assert not fleet.view().is_pinned("a", "m")


def test_what_a_neuron_said_of_needs_is_forgotten_with_its_next_start() -> None:
    fleet = make_fleet("a", "b")
    fleet.note_needs(("a", "m"), Needs(devices_mb={0: 5}))
    fleet.note_needs(("b", "m"), Needs(never="too large"))
    fleet.apply_report("a", report(), 1.0)
    assert fleet.view().needs.keys() == {("a", "m"), ("b", "m")}
    fleet.apply_report("a", Report(models=(), discovery=make_discovery()), 2.0)
    assert fleet.view().needs.keys() == {("b", "m")}
    fleet.forget_needs(("b", "m"))
    assert fleet.view().needs == {}


def test_what_a_model_took_is_kept_when_it_is_gone_and_forgotten_with_the_machine() -> None:
    fleet = make_fleet("a", "b")
    for name, load_s in (("a", 40.0), ("b", 4.0)):
        state = make_state("m", load_s=load_s, unload_s=1.5)
        fleet.apply_report(name, Report(models=(state,)), 1.0)
        fleet.apply_report(name, Report(models=()), 2.0)
    view = fleet.view()
    assert [view.takes_s(at, "load", "m") for at in "ab"] == [40.0, 4.0]
    assert view.takes_s("a", "unload", "x", "m") == 1.5
    assert (view.takes_s("a", "wake", "m"), view.takes_s("c", "load", "m")) == (None, None)
    fleet.apply_report("a", Report(models=(make_state("m", load_s=30.0),)), 3.0)
    assert (fleet.takes_s(("a", "m"), "load"), view.takes_s("a", "load", "m")) == (30.0, 40.0)
    fleet.add_node("a", "http://elsewhere")
    assert [fleet.takes_s((at, "m"), "load") for at in "ab"] == [None, 4.0]
