# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands show of a fleet: the narrow part of the gateway's GET /fleet.

Units and names are the gateway's. None means that it does not know. Pure.
"""

import msgspec

from cortex_core.node import Progress


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a node."""

    name: str
    vram_total_mb: int
    vram_used_mb: int | None = None
    utilization_pct: float | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model on a node. `running` and `waiting` are the requests that its engine has."""

    id: str
    status: str
    harness: str = ""
    running: int = 0
    waiting: int = 0
    vram_used_mb: int | None = None
    progress: Progress | None = None
    last_error: str | None = None
    load_s: float | None = None


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `seen_s_ago` is None where it never answered."""

    name: str
    endpoint: str
    up: bool
    seen_s_ago: float | None = None
    drained: bool = False
    devices: list[Device] = []
    models: list[Model] = []


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes, and the requests that the gateway has at them now."""

    nodes: list[Node]
    in_flight: int = 0


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What an order led to at one place. None: it is not about a model, or about every node."""

    status: str
    model_id: str | None = None
    node: str | None = None
    already: bool = False


class DoneAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Place by place; empty: there was nothing to do it to."""

    done: list[Done]


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a request for a model would lead to on one node: `needed_mb` by device, `would_displace` model to how."""

    node: str
    fits: bool
    decision: str
    reason: str
    needed_mb: dict[str, int] = {}
    would_displace: dict[str, str] = {}


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the next request would lead to, and where; `chosen` None: nowhere now."""

    model_id: str
    decision: str
    reason: str
    chosen: str | None
    nodes: list[NodePlan]
