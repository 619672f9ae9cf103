# SPDX-License-Identifier: GPL-3.0-or-later
"""Random fleets, catalogues and arrivals, in simulated time: what plan, placement and eviction decide is carried out.

The simulated gateway acts as dispatcher, loader and displacer do, and looks at its neurons every five seconds and after
each move. The simulated neurons have memory that can run out, and refuse a load that does not fit.
"""

import itertools
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex_core.catalogue import Catalogue, Model
from cortex_core.node import DeviceHealth, Health, ModelState
from cortex_core.testing import make_device, make_discovery
from cortex_gateway.config import EvictionSettings
from cortex_gateway.eviction import Displace, Room, is_pinned
from cortex_gateway.fleet import Fleet, Place, Report
from cortex_gateway.placement import room_at
from cortex_gateway.routing.least_busy import least_busy
from cortex_gateway.routing.plan import Load, Queue, Refuse, Serve, Wait, Wake, plan

STEP_S = 0.5
POLL_S = 5.0
LOAD_S, WAKE_S, SLEEP_S, UNLOAD_S = 10.0, 2.0, 1.0, 1.0
ASLEEP_MB = 500


class Engine:
    """A model on a simulated node."""

    def __init__(self, model: Model, devices: list[int], share_mb: int) -> None:
        self.model = model
        self.devices = devices
        self.share_mb = share_mb
        self.status = "loading"
        self.held_mb = share_mb


class Machine:
    """A simulated node: what is really there."""

    def __init__(self, name: str, sizes_mb: list[int]) -> None:
        self.name = name
        self.sizes_mb = sizes_mb
        self.engines: dict[str, Engine] = {}
        self.discovery = make_discovery(
            *(make_device(i, size) for i, size in enumerate(sizes_mb)), harnesses=("vllm",)
        )

    def free_mb(self, index: int) -> int:
        held = sum(e.held_mb for e in self.engines.values() if index in e.devices)
        return self.sizes_mb[index] - held

    def begin_load(self, model: Model) -> bool:
        """As a neuron does: on the devices with most room, or not at all."""
        assert model.id not in self.engines, "loaded twice on one node"
        share_mb = -(-(model.vram_mb or 0) // model.min_devices)
        roomy = sorted(range(len(self.sizes_mb)), key=self.free_mb, reverse=True)
        chosen = roomy[: model.min_devices]
        if len(chosen) < model.min_devices or any(self.free_mb(i) < share_mb for i in chosen):
            return False
        self.engines[model.id] = Engine(model, chosen, share_mb)
        return True

    def begin_wake(self, engine: Engine) -> bool:
        if any(self.free_mb(i) + ASLEEP_MB < engine.share_mb for i in engine.devices):
            return False
        engine.status, engine.held_mb = "loading", engine.share_mb
        return True

    def report(self, now_s: float) -> Report:
        states = tuple(
            ModelState(
                id=name,
                harness="vllm",
                status=engine.status,
                devices=engine.devices,
                vram_used_mb=engine.held_mb * len(engine.devices),
                can_sleep=engine.model.engine_args is not None,
            )
            for name, engine in self.engines.items()
        )
        devices = [
            DeviceHealth(index=i, vram_free_mb=self.free_mb(i)) for i in range(len(self.sizes_mb))
        ]
        health = Health(uptime_secs=now_s + 1, devices=devices)
        return Report(models=states, discovery=self.discovery, health=health)


class Ask:
    """One request. `ended` is `served`, or the code that it was refused with."""

    def __init__(self, model: str, at_s: float, works_s: float) -> None:
        self.model = model
        self.at_s = at_s
        self.works_s = works_s
        self.held = ExitStack()
        self.is_held = False
        self.queued_s: float | None = None
        self.ends_s: float | None = None
        self.ended: str | None = None
        self.began_s = at_s


class Flight:
    """A load or wake under way, as the loader carries it out."""

    def __init__(self, wanted: Load | Wake) -> None:
        self.wanted = wanted
        self.going: Displace | None = None
        self.drain_until_s = 0.0
        self.busy_until_s: float | None = None
        self.is_coming = False


class Simulation:
    """One gateway and its nodes."""

    def __init__(
        self, machines: list[Machine], models: list[Model], rules: EvictionSettings
    ) -> None:
        self.machines = {machine.name: machine for machine in machines}
        self.catalogue = Catalogue(models=models)
        self.rules = rules
        self.fleet = Fleet([(name, "http://x") for name in self.machines])
        self.flights: dict[Place, Flight] = {}
        self.now_s = 1000.0
        self.swaps = 0
        self.loads = 0
        for name in self.machines:
            self.poll(name)

    def poll(self, name: str) -> None:
        self.fleet.apply_report(name, self.machines[name].report(self.now_s), self.now_s)

    def run(self, asks: list[Ask], until_s: float) -> None:
        polled_s = self.now_s
        while self.now_s < until_s and any(ask.ended is None for ask in asks):
            for ask in asks:
                if ask.ends_s is not None and ask.ended is None and self.now_s >= ask.ends_s:
                    self.end(ask, "served")
            for place, flight in list(self.flights.items()):
                self.fly(place, flight, asks)
            if self.now_s - polled_s >= POLL_S:
                polled_s = self.now_s
                for name in self.machines:
                    self.poll(name)
            for ask in asks:
                if ask.at_s <= self.now_s and ask.ends_s is None and ask.ended is None:
                    self.place(ask)
            self.check()
            self.now_s += STEP_S

    def end(self, ask: Ask, how: str) -> None:
        ask.held.close()
        ask.ended = how

    def place(self, ask: Ask) -> None:
        decision = plan(
            self.fleet.view(),
            self.catalogue,
            ask.model,
            least_busy,
            eviction=self.rules,
            now_s=self.now_s,
        )
        if isinstance(decision, Serve):
            ask.held.close()
            machine = self.machines[decision.node]
            assert machine.engines[decision.model_id].status == "loaded", "sent where it is not up"
            ask.held.enter_context(
                self.fleet.serving(decision.node, decision.model_id, lambda: self.now_s)
            )
            ask.began_s = self.now_s
            ask.ends_s = self.now_s + ask.works_s
        elif isinstance(decision, Refuse):
            self.end(ask, decision.code)
        else:
            self.hold(ask, decision)

    def hold(self, ask: Ask, decision: Wait | Queue | Load | Wake) -> None:
        if not ask.is_held:
            ask.is_held = True
            ask.held.enter_context(self.fleet.holding(ask.model))
        if isinstance(decision, Queue):
            if ask.queued_s is None:
                ask.queued_s = self.now_s
                ask.held.enter_context(self.fleet.queueing(ask.model, ask.at_s, decision.nodes))
            if self.now_s - ask.queued_s >= self.rules.max_wait_s:
                self.end(ask, "insufficient_vram")
        elif isinstance(decision, Load | Wake):
            assert decision.place not in self.flights, "two loads of one model on one node"
            self.flights[decision.place] = Flight(decision)
            self.fleet.note_load_begun(decision.place, decision.claims_mb)
            self.fleet.note_leaving(decision.place, [each.place for each in decision.displaces])

    def fly(self, place: Place, flight: Flight, asks: list[Ask]) -> None:
        """One step of what the loader and the displacer do."""
        machine = self.machines[place[0]]
        if flight.busy_until_s is not None:
            if self.now_s < flight.busy_until_s:
                return
            flight.busy_until_s = None
            self.settle(machine, place, flight)
            if flight.is_coming:
                self.land(place)
                return
        if flight.going is not None:
            self.drain(machine, place, flight, asks)
            return
        view = self.fleet.view()
        found = room_at(view, self.catalogue, view.node(place[0]), place[1], self.rules, self.now_s)
        if not isinstance(found, Room):
            self.land(place)
        elif found.displaces:
            self.fleet.note_load_begun(place, found.claims_mb)
            self.fleet.note_leaving(place, [each.place for each in found.displaces])
            flight.going = found.displaces[0]
            flight.drain_until_s = self.now_s + self.rules.drain_s
        else:
            self.bring_up(machine, place, flight)

    def bring_up(self, machine: Machine, place: Place, flight: Flight) -> None:
        if isinstance(flight.wanted, Wake):
            fits = machine.begin_wake(machine.engines[place[1]])
            took_s = WAKE_S
        else:
            model = self.catalogue.find(place[1])
            assert model is not None
            fits = machine.begin_load(model)
            took_s = LOAD_S
            self.loads += 1
        assert fits, f"{place} was to come up where it has no room"
        flight.is_coming = True
        flight.busy_until_s = self.now_s + took_s

    def drain(self, machine: Machine, place: Place, flight: Flight, asks: list[Ask]) -> None:
        going = flight.going
        assert going is not None
        if self.fleet.in_flight(going.place):
            if self.now_s >= flight.drain_until_s:
                self.land(place)
                for ask in asks:
                    waits = ask.is_held and ask.ends_s is None and ask.ended is None
                    if waits and ask.model == flight.wanted.model:
                        self.end(ask, "insufficient_vram")
            return
        view = self.fleet.view()
        model = self.catalogue.find(going.model)
        assert not is_pinned(view, model, going.node, going.model_id), (
            "a pinned model was displaced"
        )
        assert view.is_pinned(going.node, going.model_id) is False
        self.swaps += 1
        flight.busy_until_s = self.now_s + (SLEEP_S if going.how == "sleep" else UNLOAD_S)
        machine.engines[going.model_id].status = "unloading"

    def settle(self, machine: Machine, place: Place, flight: Flight) -> None:
        if flight.is_coming:
            machine.engines[place[1]].status = "loaded"
        elif flight.going is not None:
            gone, flight.going = flight.going, None
            if gone.how == "sleep":
                engine = machine.engines[gone.model_id]
                engine.status, engine.held_mb = "sleeping", ASLEEP_MB
            else:
                del machine.engines[gone.model_id]
        self.poll(machine.name)

    def land(self, place: Place) -> None:
        del self.flights[place]
        self.fleet.note_load_ended(place)

    def check(self) -> None:
        for machine in self.machines.values():
            for index in range(len(machine.sizes_mb)):
                assert machine.free_mb(index) >= 0, f"{machine.name} is over its memory"
        for place, count in self.fleet.view().in_flight.items():
            status = self.machines[place[0]].engines[place[1]].status
            assert status == "loaded", f"{place} was {status} with {count} requests in flight"


def simulate(
    nodes: list[list[int]],
    models: list[Model],
    arrivals: list[tuple[float, int, float]],
    rules: EvictionSettings,
) -> tuple[Simulation, list[Ask]]:
    """`arrivals`: seconds after the one before, number of the model, seconds of work."""
    machines = [Machine("abc"[i], sizes) for i, sizes in enumerate(nodes)]
    simulation = Simulation(machines, models, rules)
    at_s = simulation.now_s
    asks = []
    for gap_s, number, works_s in arrivals:
        at_s += gap_s
        asks.append(Ask(models[number % len(models)].id, at_s, works_s))
    # Whoever waits has its turn or its refusal in max_wait_s, and what comes then is bounded too.
    simulation.run(asks, at_s + rules.max_wait_s * 2 + rules.drain_s * 2 + 600)
    return simulation, asks


def model(number: int, vram_mb: int, **fields: Any) -> Model:
    """`engine_args` stands for one that can sleep."""
    return Model(id=f"m{number}", vram_mb=vram_mb, **fields)


@st.composite
def catalogues(draw: st.DrawFn) -> list[Model]:
    count = draw(st.integers(1, 5))
    return [
        model(
            number,
            draw(st.integers(2, 24)) * 1000,
            min_devices=draw(st.sampled_from([1, 1, 1, 2])),
            priority=draw(st.sampled_from([50, 100, 100, 200])),
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
)
ENDS = {"served", "insufficient_vram", "model_infeasible"}


@pytest.mark.slow
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nodes=NODES, models=catalogues(), arrivals=ARRIVALS, rules=RULES)
def test_whatever_the_fleet_no_rule_is_broken_and_nobody_waits_for_ever(
    nodes: list[list[int]],
    models: list[Model],
    arrivals: list[tuple[float, int, float]],
    rules: EvictionSettings,
) -> None:
    simulation, asks = simulate(nodes, models, arrivals, rules)
    assert {ask.ended for ask in asks} <= ENDS, [(a.model, a.at_s, a.ended) for a in asks]
    for ask in asks:
        if ask.ended == "served":
            bound_s = rules.max_wait_s + rules.drain_s + 4 * (LOAD_S + UNLOAD_S) + POLL_S
            assert ask.began_s - ask.at_s <= bound_s
    # each request brings up its model once at most, and each of those displaces a bounded number
    assert simulation.loads <= len(asks)
    assert simulation.swaps <= 2 * len(models) * len(asks)


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
