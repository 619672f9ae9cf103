# SPDX-License-Identifier: GPL-3.0-or-later
"""Random fleets, catalogues and arrivals on the simulated fleet of the test kit, which watches over the rules.

CORTEX_SIMULATIONS=5000 tries so many fleets of each kind instead of a few hundred.
"""

import itertools
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex_core.catalogue import Model
from cortex_gateway.config import EvictionSettings
from cortex_gateway.residency import URGENT_RATIO
from cortex_gateway.simulated_nodes import LOAD_S, UNLOAD_S
from cortex_gateway.testing import POLL_S, Arrival, Ask, Event, model, simulate

EXAMPLES = int(os.environ.get("CORTEX_SIMULATIONS", "250"))


@st.composite
def catalogues(draw: st.DrawFn) -> list[Model]:
    count = draw(st.integers(1, 5))
    return [
        model(
            number,
            draw(st.sampled_from([20_000, 7_000, 23_000, 11_000, 4_000, 2_000])),
            min_devices=draw(st.sampled_from([1, 1, 1, 2])),
            priority=draw(st.sampled_from([100, 50, 200])),
            pinned_on=draw(st.sampled_from([[], [], [], [], ["a"], ["a", "b"]])),
            engine_args=draw(st.sampled_from([None, {}])),
        )
        for number in range(count)
    ]


NODES = st.lists(
    st.lists(st.sampled_from([8_000, 12_000, 24_000]), min_size=1, max_size=2),
    min_size=1,
    max_size=3,
)
ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 1.0, 5.0, 40.0]),
        st.integers(0, 4),
        st.sampled_from([0.5, 2.0, 10.0, 45.0]),
        st.sampled_from([None, None, None, 2.0, 15.0, 60.0]),
    ),
    min_size=1,
    max_size=25,
)
RULES = st.builds(
    EvictionSettings,
    strategy=st.sampled_from(["lru", "priority"]),
    min_residency_s=st.sampled_from([0.0, 5.0, 30.0]),
    drain_s=st.sampled_from([5.0, 60.0]),
    max_wait_s=st.sampled_from([20.0, 120.0]),
    idle_ttl_s=st.sampled_from([0.0, 0.0, 5.0, 40.0]),
)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["pin", "unpin", "drain", "undrain", "lose", "return", "return", "restart"]
        ),
        st.sampled_from([0.0, 3.0, 12.0, 12.5, 25.0, 40.0, 90.0, 200.0]),
        st.integers(0, 2),
        st.integers(0, 4),
    ),
    max_size=8,
)
ENDS = {"served", "left", "insufficient_vram", "model_infeasible"}
# What else may become of a request where nodes are lost and drained.
LOST = {"died", "no_healthy_node"}
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def waited_s(ask: Ask) -> float:
    return (ask.began_s if ask.ends_s is not None else ask.ended_s) - ask.at_s


def bound_s(rules: EvictionSettings) -> float:
    """Its time in the queue, and what is under way when that ends."""
    return rules.max_wait_s + rules.drain_s + 4 * (LOAD_S + UNLOAD_S) + POLL_S


@pytest.mark.slow
@MANY
@given(nodes=NODES, models=catalogues(), arrivals=ARRIVALS, rules=RULES)
def test_whatever_the_fleet_no_rule_is_broken_and_nobody_waits_for_ever(
    nodes: list[list[int]],
    models: list[Model],
    arrivals: list[Arrival],
    rules: EvictionSettings,
) -> None:
    simulation, asks = simulate(nodes, models, arrivals, rules)
    assert {ask.ended for ask in asks} <= ENDS, [(a.model, a.at_s, a.ended) for a in asks]
    for ask in asks:
        assert waited_s(ask) <= bound_s(rules), (ask.model, ask.ended)
    # each request brings up its model once at most, and what came up goes down two rungs at most
    rises = simulation.loads + simulation.wakes
    assert rises <= len(asks)
    assert simulation.swaps <= 2 * rises


@pytest.mark.slow
@MANY
@given(nodes=NODES, models=catalogues(), arrivals=ARRIVALS, rules=RULES, events=EVENTS)
def test_nor_where_nodes_are_lost_and_operators_pin_and_drain(
    nodes: list[list[int]],
    models: list[Model],
    arrivals: list[Arrival],
    rules: EvictionSettings,
    events: list[Event],
) -> None:
    simulation, asks = simulate(nodes, models, arrivals, rules, events)
    assert {ask.ended for ask in asks} <= ENDS | LOST, [(a.model, a.at_s, a.ended) for a in asks]
    for ask in asks:
        assert waited_s(ask) <= bound_s(rules), (ask.model, ask.ended)
    assert simulation.flights == {}
    assert simulation.fleet.view().held == {}
    assert simulation.fleet.view().queued == {}


@pytest.mark.slow
@MANY
@given(
    nodes=NODES,
    models=catalogues(),
    arrivals=ARRIVALS,
    rules=RULES,
    events=st.lists(
        st.tuples(
            st.sampled_from(["take", "give", "break", "lose", "return", "restart"]),
            st.sampled_from([0.0, 3.0, 12.0, 25.0, 40.0, 90.0]),
            st.integers(0, 2),
            st.integers(0, 4),
        ),
        max_size=6,
    ),
    sizes_mb=st.lists(st.sampled_from([1_000, 6_000, 12_500, 30_000]), min_size=5, max_size=5),
)
def test_nor_where_estimates_are_wrong_loads_fail_and_strangers_take_memory(
    nodes: list[list[int]],
    models: list[Model],
    arrivals: list[Arrival],
    rules: EvictionSettings,
    events: list[Event],
    sizes_mb: list[int],
) -> None:
    real_mb = {each.id: mb for each, mb in zip(models, sizes_mb, strict=False)}
    simulation, asks = simulate(nodes, models, arrivals, rules, events, real_mb)
    ends = ENDS | LOST | {"load_failed"}
    assert {ask.ended for ask in asks} <= ends, [(a.model, a.at_s, a.ended) for a in asks]
    for ask in asks:  # tried on twice, at most
        assert waited_s(ask) <= 3 * bound_s(rules), (ask.model, ask.ended)
    assert simulation.flights == {}
    assert simulation.loads + simulation.wakes <= 3 * len(asks)


@pytest.mark.slow
@MANY
@given(
    arrivals=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3), st.sampled_from([0.5, 5.0, 45.0])
        ),
        min_size=1,
        max_size=25,
    ),
    sleeps=st.lists(st.sampled_from([None, {}]), min_size=4, max_size=4),
)
def test_a_burst_costs_one_load_of_each_model_that_shares_a_device(
    arrivals: list[Arrival], sleeps: list[dict[str, Any] | None]
) -> None:
    models = [model(n, 20_000, engine_args=can_sleep) for n, can_sleep in enumerate(sleeps)]
    rules = EvictionSettings()
    simulation, asks = simulate([[24_000]], models, arrivals, rules)
    asked = {ask.model for ask in asks}
    assert {ask.ended for ask in asks} == {"served"}
    assert (simulation.loads, simulation.swaps) == (len(asked), len(asked) - 1)
    assert max(waited_s(ask) for ask in asks) <= rules.max_wait_s


def served(asks: list[Ask]) -> list[str | None]:
    return [ask.ended for ask in asks]


AGENT = [(1.0, "ABAACAB".index(letter) if letter != "C" else 4, 0.5) for letter in "ABAACAB"]


def test_a_b_a_a_c_a_b_costs_at_most_three_swaps_and_nobody_waits_too_long() -> None:
    models = [model(n, 20_000) for n in (0, 1, 2, 3, 4)]
    rules = EvictionSettings()
    simulation, asks = simulate([[24_000]], models, AGENT, rules)
    assert served(asks) == ["served"] * 7
    assert (simulation.loads, simulation.swaps) == (3, 2)
    assert max(ask.began_s - ask.at_s for ask in asks) <= rules.max_wait_s


def test_agents_that_never_stop_take_turns() -> None:
    models = [model(0, 20_000), model(1, 20_000)]
    arrivals = list(
        itertools.chain.from_iterable([(1.0, 0, 3.0), (1.0, 1, 3.0)] for _ in range(120))
    )
    rules = EvictionSettings()
    simulation, asks = simulate([[24_000]], models, arrivals, rules)
    assert served(asks) == ["served"] * 240
    assert max(ask.began_s - ask.at_s for ask in asks) < 120
    assert simulation.swaps <= 8


def test_models_that_come_back_in_seconds_take_shorter_turns() -> None:
    arrivals = [(60.0 if n < 4 else 15.0, n % 2, 1.0) for n in range(8)]

    def longest_wait_s(**fields: Any) -> float:
        models = [model(n, 20_000, **fields) for n in range(2)]
        _, asks = simulate([[24_000]], models, arrivals, EvictionSettings())
        assert served(asks) == ["served"] * 8
        return max(waited_s(ask) for ask in asks[4:])  # each was woken once by then

    assert longest_wait_s(engine_args={}) < 10 < longest_wait_s()


def test_sleepers_make_room_too() -> None:
    models = [model(n, 23_800, engine_args={}) for n in range(3)]
    arrivals = [(60.0, n % 3, 1.0) for n in range(9)]
    simulation, asks = simulate([[24_000]], models, arrivals, EvictionSettings())
    assert served(asks) == ["served"] * 9
    assert simulation.swaps > 8


def test_what_came_up_for_a_request_serves_it_before_it_makes_room() -> None:
    """Found by the simulation: m0 came up, and was unloaded for m2 before its request was sent there."""
    models = [model(0, 4_000), model(1, 4_000), model(2, 17_000, min_devices=2)]
    rules = EvictionSettings(min_residency_s=0, drain_s=5, max_wait_s=20)
    arrivals = [(0.0, 1, 0.5), (0.0, 2, 0.5), (0.0, 0, 0.5)]
    simulation, asks = simulate([[12_000, 12_000]], models, arrivals, rules)
    assert served(asks) == ["served"] * 3
    assert simulation.loads == 3


def test_who_works_all_the_time_makes_room_though_each_answer_takes_longer_than_drain_s() -> None:
    """m1 was refused after 90 s, and whenever it asked again, for as long as m0 had requests of 80 s."""
    models = [model(0, 20_000), model(1, 20_000)]
    arrivals = [(20.0, 0, 80.0)] * 5 + [(0.0, 1, 1.0)] + [(20.0, 0, 80.0)] * 20
    rules = EvictionSettings()
    _, asks = simulate([[24_000]], models, arrivals, rules)
    assert served(asks) == ["served"] * 26
    assert waited_s(asks[5]) < rules.max_wait_s * URGENT_RATIO + 80.0 + LOAD_S + UNLOAD_S + POLL_S


def test_what_is_pinned_while_its_work_ends_serves_on() -> None:
    """Found by the simulation: m0 was pinned while it drained for m1, and displaced all the same."""
    models = [model(0, 20_000), model(1, 20_000)]
    rules = EvictionSettings(min_residency_s=0, drain_s=60, max_wait_s=20)
    arrivals = [(40.0, 0, 45.0), (0.5, 1, 0.5)]
    simulation, asks = simulate([[24_000]], models, arrivals, rules, [("pin", 90.0, 0, 0)])
    assert served(asks) == ["served", "model_infeasible"]
    assert simulation.swaps == 0


def test_who_waits_longest_goes_first() -> None:
    """Whoever of those that wait looks first when the room can be had."""
    models = [model(n, 20_000) for n in range(4)]
    rules = EvictionSettings(min_residency_s=5)
    arrivals = [(0.0, 0, 45.0), (1.0, 1, 1.0), (1.0, 2, 1.0), (1.0, 3, 1.0)]
    simulation, asks = simulate([[24_000]], models, arrivals, rules)
    assert served(asks) == ["served"] * 4
    assert asks == sorted(asks, key=lambda ask: ask.began_s)
    assert simulation.swaps == 3


def test_a_gateway_that_starts_anew_joins_the_load_that_it_began() -> None:
    models = [model(0, 20_000)]
    arrivals = [(0.0, 0, 1.0), (5.0, 0, 1.0)]
    simulation, asks = simulate(
        [[24_000], [24_000]], models, arrivals, EvictionSettings(), [("restart", 4.0, 0, 0)]
    )
    assert served(asks) == ["died", "served"]
    assert simulation.loads == 1
    assert asks[1].began_s - asks[1].at_s < LOAD_S


def test_what_is_idle_goes_and_comes_again() -> None:
    models = [model(0, 20_000), model(1, 20_000, pinned_on=["a"])]
    rules = EvictionSettings(idle_ttl_s=20, min_residency_s=0)
    arrivals = [(0.0, 0, 1.0), (60.0, 0, 1.0)]
    simulation, asks = simulate([[48_000]], models, arrivals, rules)
    assert served(asks) == ["served"] * 2
    assert (simulation.loads, simulation.swaps) == (2, 0)


def test_who_is_refused_for_want_of_room_has_it_where_there_is_some() -> None:
    models = [model(0, 7_000)]
    arrivals = [(0.0, 0, 1.0)]
    simulation, asks = simulate(
        [[12_000], [24_000]], models, arrivals, EvictionSettings(), [], {"m0": 20_000}
    )
    assert (served(asks), asks[0].node) == (["served"], "b")
    assert simulation.loads == 2
