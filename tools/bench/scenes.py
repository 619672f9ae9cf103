# SPDX-License-Identifier: GPL-3.0-or-later
"""Fleets of any size, in which it is known what becomes of a request: what the benchmark of decisions asks."""

from collections.abc import Callable

import msgspec

from cortex_core.catalogue import Catalogue, Model
from cortex_core.node import DeviceHealth, Health, ModelActivity, ModelState
from cortex_core.testing import make_device, make_discovery
from cortex_gateway.config import EvictionSettings
from cortex_gateway.fleet import Fleet, Report
from cortex_gateway.routing.least_busy import least_busy
from cortex_gateway.routing.plan import Decision, plan
from cortex_gateway.routing.policy import Policy
from cortex_gateway.routing.session import read_session
from cortex_gateway.routing.session_affinity import session_affinity

NOW_S = 100_000.0
DEVICE_MB = 24_000
MODEL_MB = 11_000
ASLEEP_MB = 500
# On each node: four that serve, two to a device, and two that sleep.
PER_NODE = 6
SERVING = 4
# Models that no node has; the rest is spread over the nodes.
ABSENT = 10
# An agent's request, 33 kB of it: what it is told first, and what was said since.
TOLD, SAID = "You are an agent. " * 440, "It was said, and done. " * 56
BODY = msgspec.json.encode(
    {
        "model": "org/model-1",
        "messages": [{"role": "system", "content": TOLD}]
        + [{"role": role, "content": SAID} for role in ("user", "assistant") * 9],
    }
)
HEADERS = [(b"host", b"gateway:31313"), (b"content-type", b"application/json")]
NAMED = [*HEADERS, (b"x-session-id", b"0f6c3a52-55d6-4f0c-8d43-1c1f7b3c9f11")]


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet, and a request whose decision is known.

    Attributes:
        decision: the name of its type.
        model: what the request asks for.
        choose: makes the policy, for this request alone.
    """

    key: str
    label: str
    decision: str
    fleet: Fleet
    catalogue: Catalogue
    model: str
    choose: Callable[[], Policy] = lambda: least_busy
    rules: EvictionSettings = EvictionSettings()

    def decide(self) -> Decision:
        """As the gateway does for a request: a view of its own, and a plan from it."""
        return plan(
            self.fleet.view(),
            self.catalogue,
            self.model,
            self.choose(),
            eviction=self.rules,
            now_s=NOW_S,
        )


def build_scenes(nodes: int, models: int) -> list[Scene]:
    """One of each decision. `models` are more than ABSENT."""
    catalogue = build_catalogue(models)
    roomy = build_fleet(nodes, models, roomy_every=4)
    full = build_fleet(nodes, models)
    busy = build_fleet(nodes, models, is_busy=True)
    absent, loading, large = (f"org/model-{models - n}" for n in (1, 2, 3))
    told = [
        ("serve", "serve: a replica is ready", "Serve", roomy, "org/model-1"),
        ("wait", "wait: it is loading", "Wait", roomy, loading),
        ("wake", "wake: it sleeps, and there is room", "Wake", roomy, f"org/model-{SERVING}"),
        ("load", "load: there is room", "Load", roomy, absent),
        ("evict", "evict, then load: every device is full", "Load", full, absent),
        ("queue", "wait for room: everybody works", "Queue", busy, absent),
        ("refuse", "refuse: too large for every node", "Refuse", roomy, large),
    ]
    scenes = [
        Scene(key=key, label=label, decision=decision, fleet=fleet, catalogue=catalogue, model=model)
        for key, label, decision, fleet, model in told
    ]  # fmt: skip
    serve = scenes[0]
    return [serve, *_by_session(serve), *scenes[1:]]


def _by_session(serve: Scene) -> list[Scene]:
    """The same with `session_affinity`, between two replicas."""
    told = [
        ("serve_named", "serve, by the session that a header names", NAMED),
        ("serve_read", "serve, by the session read off a body of 33 kB", HEADERS),
    ]
    return [
        msgspec.structs.replace(
            serve,
            key=key,
            label=label,
            choose=lambda headers=headers: session_affinity(lambda: read_session(headers, BODY)),
        )
        for key, label, headers in told
    ]


def build_catalogue(models: int) -> Catalogue:
    """Every model, of one size, but for one that fits nowhere."""
    sizes = {models - 3: DEVICE_MB * 4}
    return Catalogue(
        models=[
            Model(id=f"org/model-{n}", vram_mb=sizes.get(n, MODEL_MB), priority=100 + n % 3)
            for n in range(models)
        ]
    )


def build_fleet(
    nodes: int, models: int, *, roomy_every: int | None = None, is_busy: bool = False
) -> Fleet:
    """Nodes that were seen just now.

    Args:
        nodes: how many.
        models: how many are declared.
        roomy_every: each so manieth node has room for one more; None: none has.
        is_busy: requests are at everything that serves.
    """
    names = [f"node-{n}" for n in range(nodes)]
    fleet = Fleet([(name, f"http://{name}:13131") for name in names])
    for number, name in enumerate(names):
        is_roomy = roomy_every is not None and number % roomy_every == 0
        states = _residents(number, models, is_roomy=is_roomy)
        if number == nodes - 1:
            states.append(
                ModelState(id=f"org/model-{models - 2}", harness="vllm", status="loading")
            )
        fleet.apply_report(name, _report(states, is_busy=is_busy), NOW_S - 3600)
        for state in states:
            if state.status == "loaded":
                with fleet.serving(name, state.id, lambda: NOW_S - 600):
                    pass
    return fleet


def _residents(number: int, models: int, *, is_roomy: bool) -> list[ModelState]:
    spread = (models - ABSENT) // PER_NODE * PER_NODE
    states = []
    for place in range(PER_NODE):
        if is_roomy and place == 0:  # the device of the first that sleeps
            continue
        serves = place < SERVING
        states.append(
            ModelState(
                id=f"org/model-{(number * PER_NODE + place) % spread}",
                harness="vllm",
                status="loaded" if serves else "sleeping",
                devices=[place % 2],
                vram_used_mb=MODEL_MB if serves else ASLEEP_MB,
                can_sleep=place % 2 == 0,
                load_s=20.0 + number % 7,
                wake_s=2.0 + number % 3,
                sleep_s=1.0,
                unload_s=1.0 + number % 2,
            )
        )
    return states


def _report(states: list[ModelState], *, is_busy: bool) -> Report:
    free_mb = [
        DEVICE_MB - sum(s.vram_used_mb or 0 for s in states if s.devices == [index])
        for index in (0, 1)
    ]
    return Report(
        models=tuple(states),
        discovery=make_discovery(make_device(0, DEVICE_MB), make_device(1, DEVICE_MB)),
        health=Health(
            uptime_secs=3600.0,
            devices=[DeviceHealth(index=i, vram_free_mb=mb) for i, mb in enumerate(free_mb)],
            models=[
                ModelActivity(
                    id=state.id,
                    status=state.status,
                    running=int(is_busy),
                    max_running=64,
                    max_waiting=256,
                )
                for state in states
            ],
        ),
    )
