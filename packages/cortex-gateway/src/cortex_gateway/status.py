# SPDX-License-Identifier: GPL-3.0-or-later
"""How is the fleet? The answers of GET /health and GET /fleet. Pure."""

import msgspec

from cortex_core.discovery import Device
from cortex_core.node import DeviceHealth, ModelState, ModelStatus, Progress
from cortex_gateway.fleet import Decided
from cortex_gateway.journal import RunningRequest
from cortex_gateway.view import EVERYWHERE, FleetView, NodeView


class CatalogueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of models.toml. `found` is false where the file is not there, which is allowed."""

    path: str
    found: bool
    models: int
    aliases: int


class NodeCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many nodes answer, of how many that are configured."""

    healthy: int
    total: int


class Unservable(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a node has and cannot serve. `reason` is None where the neuron gives none."""

    node: str
    model: str
    status: str
    reason: str | None = None


class HealthAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """GET /health. `status`: `ok`; `impaired`, a model cannot be served; `degraded`, no node answers."""

    status: str
    nodes: NodeCount
    catalogue: CatalogueStatus
    unservable: list[Unservable] = []


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One device: what it is, and how it is now. None: the driver does not tell."""

    index: int
    name: str
    vram_total_mb: int
    vram_used_mb: int | None = None
    vram_free_mb: int | None = None
    utilization_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None


class ModelOnNode(msgspec.Struct, frozen=True, kw_only=True):
    """One model on a node. `running` and `waiting` are the neuron's count, `in_flight` is this gateway's own."""

    id: str
    harness: str
    status: str
    devices: list[int]
    vram_used_mb: int | None
    running: int
    waiting: int
    max_running: int | None
    max_waiting: int | None
    in_flight: int
    progress: Progress | None
    last_error: str | None
    load_s: float | None


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node.

    Attributes:
        seen_s_ago: seconds since it last answered; None: it never did.
        version: of its neuron; None: not known.
        models: what it has; empty while it is down.
        drained: an operator has nothing new sent there, or it has left the configuration.
        problem: what was the matter when it was last looked at; None: nothing.
        wire: version of the wire that its neuron speaks; None: not known.
    """

    name: str
    endpoint: str
    up: bool
    misses: int
    seen_s_ago: float | None
    version: str | None
    harnesses: list[str]
    host_ram_mb: int | None
    host_ram_free_mb: int | None
    in_flight: int
    devices: list[DeviceStatus]
    models: list[ModelOnNode]
    drained: bool = False
    problem: str | None = None
    wire: int | None = None


class LoadUnderWay(msgspec.Struct, frozen=True, kw_only=True):
    """A load that this gateway asked for."""

    node: str
    model: str


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Requests for a model that is not up.

    `room_s` is for how many seconds the oldest of them waits for room; None: it does not, its model comes up.
    """

    model: str
    requests: int
    room_s: float | None = None


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A model that an operator keeps from being evicted. `node` None: everywhere."""

    model: str
    node: str | None = None


class FleetAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """GET /fleet.

    Attributes:
        in_flight: requests at nodes now.
        decisions: the last ones, newest first.
        config_error: what is wrong with the configuration that was read last, so that the one before is still in
            force; None: nothing.
        requests: that run now, the oldest first, and not all where they are many.
    """

    nodes: list[NodeStatus]
    in_flight: int
    loads: list[LoadUnderWay]
    decisions: list[Decided]
    waiting: list[Waiting] = []
    pins: list[Pin] = []
    config_error: str | None = None
    requests: list[RunningRequest] = []


def tell_health(view: FleetView, catalogue: CatalogueStatus) -> HealthAnswer:
    """The fleet in a word, and what is wrong with it."""
    healthy = sum(node.is_up for node in view.nodes)
    unservable = [
        Unservable(node=node.name, model=state.id, status=state.status, reason=state.last_error)
        for node in view.nodes
        if node.is_up
        for state in node.models
        if state.status == ModelStatus.FAILED
    ]
    return HealthAnswer(
        status="degraded" if not healthy else "impaired" if unservable else "ok",
        nodes=NodeCount(healthy=healthy, total=len(view.nodes)),
        catalogue=catalogue,
        unservable=unservable,
    )


def tell_fleet(view: FleetView, decisions: list[Decided], now_s: float) -> FleetAnswer:
    """Everything that is known. `now_s` is monotonic seconds."""
    return FleetAnswer(
        nodes=[_node(view, node, now_s) for node in view.nodes],
        in_flight=sum(view.in_flight.values()),
        loads=[LoadUnderWay(node=node, model=model) for node, model in sorted(view.loads)],
        decisions=decisions,
        waiting=[_waiting(view, model, now_s) for model in sorted(view.held)],
        pins=[
            Pin(model=model, node=None if node == EVERYWHERE else node)
            for node, model in sorted(view.pins)
        ],
    )


def _waiting(view: FleetView, model: str, now_s: float) -> Waiting:
    queued = view.queued.get(model)
    room_s = round(now_s - queued.since_s, 3) if queued else None
    return Waiting(model=model, requests=view.held[model], room_s=room_s)


def _node(view: FleetView, node: NodeView, now_s: float) -> NodeStatus:
    found, health = node.discovery, node.health
    return NodeStatus(
        name=node.name,
        endpoint=node.endpoint,
        up=node.is_up,
        misses=node.misses,
        seen_s_ago=None if node.last_seen_s is None else round(now_s - node.last_seen_s, 3),
        version=found.version if found else None,
        harnesses=found.harnesses if found else [],
        host_ram_mb=found.host_ram_mb if found else None,
        host_ram_free_mb=health.host_ram_free_mb if health and node.is_up else None,
        in_flight=sum(count for (name, _), count in view.in_flight.items() if name == node.name),
        devices=[_device(node, device) for device in (found.devices if found else [])],
        models=[_model(view, node, state) for state in node.models if node.is_up],
        drained=node.name in view.drained,
        problem=node.problem.text if node.problem else None,
        wire=found.wire if found else None,
    )


def _device(node: NodeView, device: Device) -> DeviceStatus:
    told = node.health.devices if node.health and node.is_up else []
    now = next((h for h in told if h.index == device.index), DeviceHealth(index=device.index))
    return DeviceStatus(
        index=device.index,
        name=device.name,
        vram_total_mb=device.vram_total_mb,
        vram_used_mb=now.vram_used_mb,
        vram_free_mb=now.vram_free_mb,
        utilization_pct=now.utilization_pct,
        temp_c=now.temp_c,
        power_w=now.power_w,
    )


def _model(view: FleetView, node: NodeView, state: ModelState) -> ModelOnNode:
    doing = node.activity(state.id)
    return ModelOnNode(
        id=state.id,
        harness=state.harness,
        status=state.status,
        devices=state.devices,
        vram_used_mb=state.vram_used_mb,
        running=doing.running,
        waiting=doing.waiting,
        max_running=doing.max_running,
        max_waiting=doing.max_waiting,
        in_flight=view.in_flight.get((node.name, state.id), 0),
        progress=state.progress,
        last_error=state.last_error,
        load_s=state.load_s,
    )
