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
    """One node. `seen_s_ago` is None where it never answered, `problem` where nothing is the matter."""

    name: str
    endpoint: str
    up: bool
    seen_s_ago: float | None = None
    drained: bool = False
    problem: str | None = None
    devices: list[Device] = []
    models: list[Model] = []


class RunningRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that runs, and the last thing that was decided about it."""

    request_id: str
    model: str
    duration_s: float
    node: str | None = None
    step: str | None = None
    reason: str | None = None


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes, and the requests that the gateway has at them now.

    `config_error`: what is wrong with the configuration as it was read last; None: nothing.
    """

    nodes: list[Node]
    in_flight: int = 0
    requests: list[RunningRequest] = []
    config_error: str | None = None


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
    """What a request for a model would lead to on one node: `needed_mb` by device, `would_displace` model to how.

    `expected_s` None: it is up, or was never brought up there.
    """

    node: str
    fits: bool
    decision: str
    reason: str
    needed_mb: dict[str, int] = {}
    would_displace: dict[str, str] = {}
    expected_s: float | None = None


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the next request would lead to, and where; `chosen` None: nowhere now."""

    model_id: str
    decision: str
    reason: str
    chosen: str | None
    nodes: list[NodePlan]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A node that was considered, and what spoke for it or against it."""

    node: str
    says: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One decision about a request, so many seconds after its arrival."""

    after_s: float
    decision: str
    reason: str
    node: str | None = None
    candidates: list[Candidate] = []
    times: int = 1


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request. `served_model` and `node` are None where it got nowhere."""

    request_id: str
    at: float
    model: str
    outcome: str
    duration_s: float
    dialect: str = ""
    served_model: str | None = None
    node: str | None = None
    status: int | None = None
    queue_wait_s: float = 0.0
    load_wait_s: float = 0.0
    error_code: str | None = None
    steps: list[Step] = []
