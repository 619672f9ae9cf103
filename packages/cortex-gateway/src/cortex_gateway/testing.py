# SPDX-License-Identifier: GPL-3.0-or-later
"""The test kit: a fleet in simulated time, on which what plan, placement and eviction decide is carried out and judged.

The simulated gateway acts as dispatcher, loader and displacer do, and looks at its neurons every five seconds and after
each move. The simulated neurons have memory that can run out, and refuse a load that does not fit; they can be lost, and
come back empty. Clients may leave, operators pin models and drain nodes, and the gateway may be killed and start anew. In
a world that is not honest models are not as large as declared, loads fail, and strangers take memory.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from cortex_core.catalogue import Catalogue, Model
from cortex_gateway.config import EvictionSettings
from cortex_gateway.declared import find_entry
from cortex_gateway.dispatcher import MOST_LOSSES
from cortex_gateway.eviction import Displace, Room, find_idle, is_pinned
from cortex_gateway.fleet import Fleet
from cortex_gateway.placement import room_at
from cortex_gateway.residency import drains_s
from cortex_gateway.routing.least_busy import least_busy
from cortex_gateway.routing.plan import Decision, Load, Queue, Refuse, Serve, Wait, Wake, plan
from cortex_gateway.simulated_nodes import Machine, check
from cortex_gateway.view import Move, Needs, NodeView, Place

STEP_S = 0.5
POLL_S = 5.0


class Ask:
    """One request. `ended` is `served`, `left`, `died`, or the code that it was refused with."""

    def __init__(self, model: str, at_s: float, works_s: float, patience_s: float | None) -> None:
        self.model = model
        self.at_s = at_s
        self.works_s = works_s
        self.patience_s = patience_s
        self.node: str | None = None
        self.held = ExitStack()
        self.is_held = False
        self.queued_s: float | None = None
        self.ends_s: float | None = None
        self.ended: str | None = None
        self.ended_s = at_s
        self.began_s = at_s
        self.losses = 0
        self.shunned: frozenset[str] = frozenset()

    @property
    def waits(self) -> bool:
        """Whether it is held."""
        return self.is_held and self.ends_s is None and self.ended is None


class Flight:
    """A load or wake under way, as the loader carries it out."""

    def __init__(self, wanted: Load | Wake, now_s: float) -> None:
        self.wanted = wanted
        self.began_s = now_s
        self.going: Displace | None = None
        self.drain_until_s = 0.0
        self.busy_until_s: float | None = None
        self.is_coming = False


# What happens to a node: what, seconds from the beginning, number of the node, number of a model.
Event = tuple[str, float, int, int]


class Simulation:
    """One gateway and its nodes."""

    def __init__(
        self,
        machines: list[Machine],
        models: list[Model],
        rules: EvictionSettings,
        events: list[Event] = [],  # noqa: B006 - read alone
        real_mb: dict[str, int] | None = None,
    ) -> None:
        self.machines = {machine.name: machine for machine in machines}
        self.catalogue = Catalogue(models=models)
        self.models = {model.id: model for model in models}
        self.rules = rules
        self.fleet = Fleet([(name, "http://x") for name in self.machines])
        self.flights: dict[Place, Flight] = {}
        self.now_s = 1000.0
        self.events = sorted((1000.0 + at_s, what, node, m) for what, at_s, node, m in events)
        self.swaps = 0
        self.loads = 0
        self.wakes = 0
        self.is_honest = real_mb is None
        self.refused: set[Place] = set()
        self.asks: list[Ask] = []
        self.idling: dict[Place, ExitStack] = {}
        for machine in machines:
            machine.real_mb = real_mb or {}
        for name in self.machines:
            self.poll(name)

    def poll(self, name: str) -> None:
        """Look at a node; who waits for a load there is told when it is down."""
        if not self.machines[name].is_down:
            self.fleet.apply_report(name, self.machines[name].report(self.now_s), self.now_s)
        elif self.fleet.apply_miss(name):
            for place in [place for place in self.flights if place[0] == name]:
                self.fail(place, "no_healthy_node")

    def happen(self) -> None:
        """What an operator does, or a machine."""
        while self.events and self.events[0][0] <= self.now_s:
            _, what, node, number = self.events.pop(0)
            name = list(self.machines)[node % len(self.machines)]
            machine = self.machines[name]
            model_id = self.catalogue.models[number % len(self.catalogue.models)].id
            match what:
                case "pin" | "unpin":
                    self.fleet.note_pin((name, model_id), pinned=what == "pin")
                case "drain" | "undrain":
                    self.fleet.note_drain(name, drained=what == "drain")
                case "lose":
                    machine.lose()
                    for ask in self.asks:
                        if ask.node == name and ask.ended is None:
                            self.end(ask, "died")
                case "return" if machine.is_down:
                    machine.is_down, machine.started_s = False, self.now_s
                case "restart":
                    self.restart()
                case "break":
                    machine.breaking.add(model_id)
                case "take" | "give":
                    machine.take(0.5 if what == "take" else 0.0)

    def restart(self) -> None:
        """The gateway is killed, and knows nothing when it is back. Its clients lost it; neurons go on."""
        for ask in self.asks:
            if ask.ended is None and ask.at_s <= self.now_s:
                self.end(ask, "died")
        self.flights, self.idling = {}, {}
        self.fleet = Fleet([(name, "http://x") for name in self.machines])
        for name in self.machines:
            self.poll(name)

    def run(self, asks: list[Ask], until_s: float) -> None:
        """Step by step, until each request has ended, or time is up."""
        self.asks = asks
        polled_s = self.now_s
        while self.now_s < until_s and (self.flights or any(a.ended is None for a in asks)):
            self.happen()
            for machine in self.machines.values():
                machine.advance(self.now_s)
            for ask in asks:
                if ask.ends_s is not None and ask.ended is None and self.now_s >= ask.ends_s:
                    self.end(ask, "served")
                elif ask.waits and ask.patience_s and self.now_s - ask.at_s >= ask.patience_s:
                    self.end(ask, "left")
            for place, flight in list(self.flights.items()):
                if self.flights.get(place) is flight:
                    self.fly(place, flight)
            if self.now_s - polled_s >= POLL_S:
                polled_s = self.now_s
                for name in self.machines:
                    self.poll(name)
            self.idle()
            for ask in reversed(asks):  # in no order that they could rely on
                if ask.at_s <= self.now_s and ask.ends_s is None and ask.ended is None:
                    self.place(ask)
            self.look()
            self.now_s += STEP_S

    def end(self, ask: Ask, how: str) -> None:
        """It has its answer, or none."""
        ask.held.close()
        ask.ended, ask.ended_s = how, self.now_s

    def plan(self, ask: Ask) -> Decision:
        """What becomes of a request."""
        return plan(
            self.fleet.view(),
            self.catalogue,
            ask.model,
            least_busy,
            shunned=ask.shunned,
            eviction=self.rules,
            now_s=self.now_s,
        )

    def place(self, ask: Ask) -> None:
        """Do what is decided about a request, as the dispatcher does."""
        decision = self.plan(ask)
        if isinstance(decision, Serve):
            machine = self.machines[decision.node]
            if machine.is_down:  # not noticed yet
                self.end(ask, "died")
                return
            if machine.started_s and decision.model_id not in machine.engines:
                self.poll(decision.node)  # it came back before it was missed, and says so
                return
            ask.held.close()
            ask.node = decision.node
            status = machine.engines[decision.model_id].status
            check(status == "loaded", "a request was sent where the model is not up")
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
        """Have it wait, and begin what it waits for."""
        if not ask.is_held:
            ask.is_held = True
            ask.held.enter_context(self.fleet.holding(ask.model))
        if isinstance(decision, Queue):
            if ask.queued_s is None:
                ask.queued_s = self.now_s
                ask.held.enter_context(self.fleet.queueing(ask.model, ask.at_s, decision.nodes))
            if self.now_s - ask.queued_s >= self.rules.max_wait_s:
                self.end(ask, "insufficient_vram")
        elif isinstance(decision, Wait):
            if (decision.node, decision.model_id) not in self.flights:  # it is watched
                self.poll(decision.node)
        elif (
            decision.displaces and self.now_s - (ask.queued_s or ask.at_s) >= self.rules.max_wait_s
        ):
            self.end(ask, "insufficient_vram")
        else:
            check(decision.place not in self.flights, "two loads of one model on one node")
            self.flights[decision.place] = Flight(decision, self.now_s)
            self.fleet.note_load_begun(decision.place, decision.claims_mb)
            self.fleet.note_leaving(decision.place, [each.place for each in decision.displaces])

    def fly(self, place: Place, flight: Flight) -> None:
        """One step of what the loader and the displacer do."""
        machine = self.machines[place[0]]
        if machine.is_down or machine.started_s > flight.began_s:
            self.fail(place, "no_healthy_node")
            return
        if flight.busy_until_s is not None:
            if self.now_s < flight.busy_until_s:
                return
            flight.busy_until_s = flight.going = None
            self.poll(machine.name)
            if flight.is_coming:
                is_up = machine.engines[place[1]].status == "loaded"
                self.land(place) if is_up else self.fail(place, "load_failed")
                return
        if flight.going is not None:
            self.drain(machine, place, flight, flight.going)
            return
        self.learn(machine, place, flight)
        view = self.fleet.view()
        found = room_at(view, self.catalogue, view.node(place[0]), place[1], self.rules, self.now_s)
        if not isinstance(found, Room):
            self.land(place)
        elif found.displaces:
            self.fleet.note_load_begun(place, found.claims_mb)
            self.fleet.note_leaving(place, [each.place for each in found.displaces])
            flight.going = found.displaces[0]
            within_s = drains_s(view, flight.wanted.model, self.rules, self.now_s)
            flight.drain_until_s = self.now_s + within_s
        else:
            self.bring_up(machine, place, flight)

    def learn(self, machine: Machine, place: Place, flight: Flight) -> None:
        """What the neuron says that it takes, asked once: half of the truth, where it was never refused for want of room."""
        if self.is_honest or isinstance(flight.wanted, Wake) or place in self.fleet.view().needs:
            return
        wanted = self.models[place[1]]
        share_mb = machine.share_mb(wanted) // (1 if place in self.refused else 2)
        devices = range(min(wanted.min_devices, len(machine.sizes_mb)))
        self.fleet.note_needs(place, Needs(devices_mb=dict.fromkeys(devices, share_mb)))

    def bring_up(self, machine: Machine, place: Place, flight: Flight) -> None:
        """Begin a load or a wake, for which there must be room."""
        if isinstance(flight.wanted, Wake):
            fits = machine.begin_wake(machine.engines[place[1]])
            self.wakes += 1
        else:
            fits = machine.begin_load(self.models[place[1]])
            self.loads += 1
        check(fits or not self.is_honest, f"{place} was to come up where it has no room")
        if not fits:
            self.refused.add(place)
            self.fleet.forget_needs(place)
            self.poll(machine.name)
            self.fail(place, "insufficient_vram")
            return
        flight.is_coming = True
        move: Move = "wake" if isinstance(flight.wanted, Wake) else "load"
        flight.busy_until_s = machine.begin(place[1], move, self.now_s)

    def drain(self, machine: Machine, place: Place, flight: Flight, going: Displace) -> None:
        """Let its work end, then begin to move it down."""
        if self.fleet.in_flight(going.place):
            if self.now_s >= flight.drain_until_s:
                self.fleet.note_stayed(going.place, self.now_s)
                self.fleet.note_leaving(place, ())
                flight.going = None
            return
        view = self.fleet.view()
        if view.is_pinned(going.node, going.model_id):  # while its work ended
            flight.going = None
            return
        model, claimant = self.models[going.model], self.models[flight.wanted.model]
        pinned = is_pinned(view, model, going.node, going.model_id)
        check(not pinned, "a pinned model was displaced")
        if self.rules.strategy == "priority":
            check(model.priority <= claimant.priority, "a higher priority was displaced")
        self.swaps += 1
        flight.busy_until_s = machine.begin(going.model_id, going.how, self.now_s)

    def idle(self) -> None:
        """Move those down that nobody asks for, as the displacer does."""
        for place, moving in list(self.idling.items()):
            if place[1] not in self.machines[place[0]].moves:
                moving.close()
                del self.idling[place]
                self.poll(place[0])
        for who in find_idle(self.fleet.view(), self.catalogue, self.rules, self.now_s):
            machine = self.machines[who.node]
            if machine.is_down or who.model_id not in machine.engines:  # not noticed yet
                continue
            view = self.fleet.view()
            check(not view.in_flight.get(who.place), "a model with requests was idle")
            pinned = is_pinned(view, self.models[who.model], who.node, who.model_id)
            check(not pinned, "a pinned model was moved")
            moving = self.idling[who.place] = ExitStack()
            moving.enter_context(self.fleet.moving(who.place))
            machine.begin(who.model_id, who.how, self.now_s)

    def fail(self, place: Place, code: str) -> None:
        """Who waits for it is told, but for those that another node may serve."""
        flight = self.flights[place]
        self.land(place)
        for ask in self.asks:
            if ask.waits and ask.model == flight.wanted.model:
                ask.losses += 1
                ask.shunned |= {place[0]}
                tries_on = code != "load_failed" and ask.losses <= MOST_LOSSES
                if not tries_on or isinstance(self.plan(ask), Refuse):
                    self.end(ask, code)

    def land(self, place: Place) -> None:
        """It is over, however it ended."""
        del self.flights[place]
        self.fleet.note_load_ended(place)

    def look(self) -> None:
        """Whether every rule is kept now."""
        for machine in self.machines.values():
            for index in range(len(machine.sizes_mb)):
                check(machine.free_mb(index) >= 0, f"{machine.name} is over its memory")
        for place, count in self.fleet.view().in_flight.items():
            check(not self.machines[place[0]].is_down, f"requests are at {place}, which is lost")
            status = self.machines[place[0]].engines[place[1]].status
            check(status == "loaded", f"{place} was {status} with {count} requests in flight")


# Seconds after the one before, number of the model, seconds of work, and after how many seconds the client leaves.
Arrival = tuple[float, int, float] | tuple[float, int, float, float | None]


def simulate(
    nodes: list[list[int]],
    models: list[Model],
    arrivals: Sequence[Arrival],
    rules: EvictionSettings,
    events: list[Event] = [],  # noqa: B006 - read alone
    real_mb: dict[str, int] | None = None,
) -> tuple[Simulation, list[Ask]]:
    """Run requests on nodes, each given as the sizes of its devices. `real_mb` None: models are as large as declared."""
    machines = [Machine("abc"[i], sizes) for i, sizes in enumerate(nodes)]
    simulation = Simulation(machines, models, rules, events, real_mb)
    at_s = simulation.now_s
    asks = []
    for gap_s, number, works_s, *patience_s in arrivals:
        at_s += gap_s
        patient = patience_s[0] if patience_s else None
        asks.append(Ask(models[number % len(models)].id, at_s, works_s, patient))
    # Whoever waits has its turn or its refusal in max_wait_s, and what comes then is bounded too.
    simulation.run(asks, at_s + rules.max_wait_s * 2 + rules.drain_s * 2 + 600)
    return simulation, asks


def model(number: int, vram_mb: int, **fields: Any) -> Model:
    """`engine_args` stands for one that can sleep."""
    return Model(id=f"m{number}", vram_mb=vram_mb, **fields)


def declare_all(models: Iterable[Model], *nodes: NodeView) -> Catalogue:
    """A catalogue of these models, and of all others that the nodes have."""
    found = list(models)
    for state in {state.id: state for node in nodes for state in node.models}.values():
        if find_entry(Catalogue(models=found), state.id) is None:
            found.append(Model(id=state.id, harness=state.harness))
    return Catalogue(models=found)
