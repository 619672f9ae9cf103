# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that come, change and go, and what the fleet knows of them then."""

import asyncio

import pytest

from cortex_core.errors import UpstreamConnectionError
from cortex_core.testing import make_state
from cortex_gateway.config import NeuronSettings
from cortex_gateway.fleet import Fleet, Report
from cortex_gateway.roster import Roster


def make_neuron(name: str, port: int = 1, secret: str | None = None) -> NeuronSettings:
    return NeuronSettings(name=name, endpoint=f"http://127.0.0.1:{port}", secret=secret)


def make(*neurons: NeuronSettings) -> tuple[Roster, Fleet]:
    """All of them up, with the model `m`."""
    fleet = Fleet([(neuron.name, neuron.endpoint) for neuron in neurons])
    for neuron in neurons:
        fleet.apply_report(neuron.name, Report(models=(make_state("m"),)), 1.0)
    return Roster(neurons, idle_timeout_s=1), fleet


def names(fleet: Fleet) -> list[str]:
    return [node.name for node in fleet.view().nodes]


def serving(fleet: Fleet) -> list[str]:
    view = fleet.view()
    return [each.node.name for each in view.residents("m") if view.serves(each)]


def test_what_is_as_before_changes_nothing() -> None:
    roster, fleet = make(make_neuron("a", secret="s"))
    client = roster.clients["a"]
    changes = roster.adopt([make_neuron("a", secret="s")], fleet)
    assert (changes.joined, changes.changed, changes.left) == ([], [], [])
    assert roster.clients["a"] is client
    assert serving(fleet) == ["a"]


def test_a_new_secret_takes_a_new_client_and_leaves_the_node_up() -> None:
    roster, fleet = make(make_neuron("a"))
    client = roster.clients["a"]
    assert roster.adopt([make_neuron("a", secret="s")], fleet).changed == ["a"]
    assert roster.clients["a"] is not client
    assert roster.with_secret == {"a"}
    assert serving(fleet) == ["a"]
    roster.adopt([make_neuron("a")], fleet)
    assert roster.with_secret == set()


def test_another_endpoint_is_another_machine_until_it_was_looked_at() -> None:
    roster, fleet = make(make_neuron("a", 1))
    assert roster.adopt([make_neuron("a", 2)], fleet).changed == ["a"]
    assert serving(fleet) == []
    assert not fleet.node("a").was_seen
    assert not fleet.view().knows("m")
    assert fleet.node("a").endpoint == "http://127.0.0.1:2"


def test_who_joins_does_not_count_before_it_was_looked_at() -> None:
    roster, fleet = make(make_neuron("a"))
    assert roster.adopt([make_neuron("a"), make_neuron("b", 2)], fleet).joined == ["b"]
    assert (names(fleet), serving(fleet)) == (["a", "b"], ["a"])


async def test_who_leaves_gets_nothing_new_and_is_forgotten_when_its_work_has_ended() -> None:
    roster, fleet = make(make_neuron("a"), make_neuron("b", 2))
    with fleet.serving("a", "m"):
        assert roster.adopt([make_neuron("b", 2)], fleet).left == ["a"]
        assert serving(fleet) == ["b"]
        waiting = asyncio.create_task(roster.until_over("a", fleet))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.05)
    assert await waiting
    await roster.remove("a", fleet)
    assert (names(fleet), list(roster.clients)) == (["b"], ["b"])
    assert [each.node.name for each in fleet.view().residents("m")] == ["b"]


@pytest.mark.parametrize("work", ["load", "leaving"])
def test_a_load_and_who_makes_room_are_work_too(work: str) -> None:
    _, fleet = make(make_neuron("a"))
    assert fleet.is_idle("a")
    if work == "load":
        fleet.note_load_begun(("a", "x"))
    else:
        fleet.note_leaving(("b", "x"), [("a", "m")])
    assert not fleet.is_idle("a")


async def test_who_comes_back_in_time_stays_and_an_operator_s_drain_is_no_leaving() -> None:
    roster, fleet = make(make_neuron("a"))
    with fleet.serving("a", "m"):
        roster.adopt([], fleet)
        waiting = asyncio.create_task(roster.until_over("a", fleet))
        await asyncio.sleep(0)
        changes = roster.adopt([make_neuron("a")], fleet)
        assert (changes.joined, changes.changed) == ([], [])
        assert not await waiting
    assert serving(fleet) == ["a"]
    roster.adopt([], fleet)
    fleet.note_drain("a", drained=False)  # nothing new goes there all the same
    assert serving(fleet) == []
    fleet.note_drain("a", drained=True)
    roster.adopt([make_neuron("a")], fleet)
    assert serving(fleet) == []
    fleet.note_drain("a", drained=False)
    assert serving(fleet) == ["a"]


async def test_what_a_node_was_asked_by_before_is_closed_when_its_work_has_ended() -> None:
    roster, fleet = make(make_neuron("a"))
    before = roster.clients["a"]
    with fleet.serving("a", "m"):
        roster.adopt([make_neuron("a", secret="s")], fleet)
        closing = asyncio.create_task(roster.close_old("a", fleet))
        await asyncio.sleep(0)
        assert not closing.done()
    await closing
    with pytest.raises(UpstreamConnectionError, match="the client was closed"):
        await before.ask("GET", "/x", dict)
