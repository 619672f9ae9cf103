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
    devices: list[Device] = []
    models: list[Model] = []


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes, and the requests that the gateway has at them now."""

    nodes: list[Node]
    in_flight: int = 0
