# SPDX-License-Identifier: GPL-3.0-or-later
"""Where could a cold model run, and where does it best? Pure."""

import msgspec

from cortex_core.catalogue import Model, infeasible_reason
from cortex_core.discovery import Device, Discovery
from cortex_core.node import ModelStatus
from cortex_gateway.fleet import FleetView, NodeView

_UNKNOWN = Discovery(hostname="", os="", kernel="")


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """Every node, sorted by what it can do for one model.

    Attributes:
        feasible: up, and it can run there.
        absent: down, or not yet known, and it could or may run there: node to what is the matter.
        infeasible: it can never run there: node to the arithmetic.
    """

    feasible: tuple[NodeView, ...]
    absent: dict[str, str]
    infeasible: dict[str, str]

    @property
    def why_nowhere(self) -> str | None:
        """The arithmetic of every node, where none of them can ever run it; None: one can, or may."""
        if self.feasible or self.absent or not self.infeasible:
            return None
        return "; ".join(f"{node}: {reason}" for node, reason in self.infeasible.items())


def survey(view: FleetView, model: Model) -> Survey:
    """Ask every node whether the model can run there at all. Total memory only."""
    feasible: list[NodeView] = []
    absent: dict[str, str] = {}
    infeasible: dict[str, str] = {}
    for node in view.nodes:
        if reason := _never(node, model):
            infeasible[node.name] = reason
        elif missing := _missing(node):
            absent[node.name] = missing
        else:
            feasible.append(node)
    return Survey(feasible=tuple(feasible), absent=absent, infeasible=infeasible)


def choose_node(view: FleetView, model: Model, among: tuple[NodeView, ...]) -> NodeView:
    """The best of several feasible nodes, of which there is at least one.

    1. One where it fits into what is free now.
    2. One where its last engine did not fail.
    3. The one with the fewest models, those on their way counted.
    4. By name.

    A node where it does not fit now is chosen where none is better: the neuron knows its memory, and refuses.
    """

    def rank(node: NodeView) -> tuple[bool, bool, int, str]:
        coming = sum(1 for name, _ in view.loads if name == node.name)
        return (
            not fits_now(node, model),  # 1
            failed_there(node, model),  # 2
            len(node.models) + coming,  # 3
            node.name,  # 4
        )

    return min(among, key=rank)


def fits_now(node: NodeView, model: Model) -> bool:
    """Whether enough devices have a share of the model free.

    A model of unknown size fits, and a device that does not tell what is free counts as empty: only what is known to
    be too small is avoided.
    """
    if model.harness == "echo" or not model.vram_mb:
        return True
    share_mb = -(-model.vram_mb // model.min_devices)
    devices = node.discovery.devices if node.discovery else []
    room = [device for device in devices if _free_mb(node, device) >= share_mb]
    return len(room) >= model.min_devices


def _free_mb(node: NodeView, device: Device) -> int:
    for told in node.health.devices if node.health else []:
        if told.index == device.index and told.vram_free_mb is not None:
            return told.vram_free_mb
    return device.vram_total_mb


def _never(node: NodeView, model: Model) -> str | None:
    if node.discovery is None:  # only its name is known, and a pin speaks of names
        elsewhere = model.pinned_on and node.name not in model.pinned_on
        return infeasible_reason(model, node.name, _UNKNOWN) if elsewhere else None
    return infeasible_reason(model, node.name, node.discovery)


def _missing(node: NodeView) -> str | None:
    if not node.was_seen:
        return "never answered"
    if not node.is_up:
        return "does not answer"
    return None if node.discovery else "has not told what it is"


def failed_there(node: NodeView, model: Model) -> bool:
    """Whether its last engine there failed."""
    names = (model.id, model.spec().model_id)
    return any(s.id in names and s.status == ModelStatus.FAILED for s in node.models)
