# SPDX-License-Identifier: GPL-3.0-or-later
"""What does a model need of a node's devices, what do those have free, and who holds the rest? Pure.

All of it is per device, in MiB: two devices with half of the room each are no room for a model of one device.
"""

from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Catalogue, Model
from cortex_core.discovery import Device
from cortex_core.node import ModelState, ModelStatus
from cortex_gateway.declared import find_entry
from cortex_gateway.view import Claims, FleetView, NodeView, Place


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a model needs of a node.

    Attributes:
        share_mb: MiB of each device; None: not known, and then it fits anywhere.
        count: how many devices.
        among: indices of the devices that it may have.
    """

    share_mb: int | None
    count: int
    among: tuple[int, ...]

    def choose(self, free_mb: Claims) -> tuple[int, ...] | None:
        """The devices with most room, where enough of them have it; None: they have not."""
        share_mb = self.share_mb or 0
        roomy = [i for i in self.among if free_mb.get(i, 0) >= share_mb]
        roomy.sort(key=lambda i: (-free_mb.get(i, 0), i))
        return tuple(roomy[: self.count]) if len(roomy) >= self.count else None

    def claims_mb(self, devices: tuple[int, ...]) -> dict[int, int]:
        """What it takes of each of these devices."""
        return dict.fromkeys(devices, self.share_mb) if self.share_mb else {}


NOTHING = Need(share_mb=None, count=0, among=())


def need_of(view: FleetView, node: NodeView, model: Model) -> Need:
    """What a declared model needs to be loaded on a node.

    1. Nothing, where its engine uses no device.
    2. What the node's neuron said: it measured the model, or knows its files.
    3. What it was seen to have there when it was last up.
    4. What the catalogue says.
    """
    if not model.uses_devices:  # 1
        return NOTHING
    place = (node.name, model.loaded_id)
    said_mb = view.needs[place].devices_mb if place in view.needs else {}
    count = len(said_mb) or model.tensor_parallel or model.min_devices
    share_mb: int | None = None
    if said_mb:  # 2
        share_mb = max(said_mb.values())
    elif whole_mb := view.measured_mb.get(place) or model.vram_mb:  # 3, 4
        share_mb = _share(whole_mb, count)
    return Need(share_mb=share_mb, count=count, among=_allowed(node, model))


def need_to_wake(view: FleetView, catalogue: Catalogue, node: NodeView, asleep: ModelState) -> Need:
    """What a sleeping model needs: all that it had, on the devices that it was given."""
    held = _whole_mb(view, catalogue, node, asleep)
    devices = _devices_of(catalogue, node, asleep)
    share_mb = _share(held, len(devices)) if held and devices else None
    return Need(share_mb=share_mb, count=len(devices), among=devices)


def free_mb(
    view: FleetView, catalogue: Catalogue, node: NodeView, without: Place | None = None
) -> dict[int, int]:
    """What can still be given of each device.

    No more than the driver says is free, less what loads under way will still take; and no more than nobody holds,
    for engines whose memory no driver sees. What the place `without` has counts as free.
    """
    loads = {place: mb for place, mb in view.loads.items() if place[0] == node.name}
    held_mb = held_by_all(view, catalogue, node)
    if not loads and without not in held_mb:
        return node.keep("free_mb", _basis(view, catalogue), lambda: _free_mb(node, held_mb, {}))
    return _free_mb(node, held_mb, loads, without)


def _free_mb(
    node: NodeView,
    used_mb: Mapping[Place, Claims],
    loads: Mapping[Place, Claims],
    without: Place | None = None,
) -> dict[int, int]:
    found: dict[int, int] = {}
    for device in _devices(node):
        index = device.index
        total_mb, measured_mb = device.vram_total_mb, _measured_mb(node, device)
        for place, has in used_mb.items():
            has_mb = has.get(index, 0)
            claim_mb = loads[place].get(index, 0) if place in loads else 0
            if place == without:
                measured_mb += has_mb
            else:
                total_mb -= max(has_mb, claim_mb)
                measured_mb -= max(0, claim_mb - has_mb)
        for place, claims in loads.items():  # what the neuron does not tell of yet
            if place not in used_mb and place != without:
                total_mb -= claims.get(index, 0)
                measured_mb -= claims.get(index, 0)
        found[index] = max(0, min(total_mb, measured_mb))
    return found


def held_by_all(
    view: FleetView, catalogue: Catalogue, node: NodeView
) -> dict[Place, dict[int, int]]:
    """What each model of a node has of its devices.

    Of a model whose size nobody knows it is what is used of its devices and nobody else explains: it would be wrong to
    think that nothing were gained without it.
    """
    return node.keep(
        "held_mb", _basis(view, catalogue), lambda: _held_by_all(view, catalogue, node)
    )


def _basis(view: FleetView, catalogue: Catalogue) -> tuple[object, ...]:
    """What the memory of a node's models depends on, beside the node."""
    return view.needs, view.measured_mb, catalogue


def _held_by_all(
    view: FleetView, catalogue: Catalogue, node: NodeView
) -> dict[Place, dict[int, int]]:
    known: dict[Place, dict[int, int]] = {}
    unknown: list[ModelState] = []
    for state in node.models:
        held_mb = _held_mb(view, catalogue, node, state)
        if held_mb is None:
            unknown.append(state)
        else:
            known[node.name, state.id] = held_mb
    for state in unknown:
        known[node.name, state.id] = _unexplained(catalogue, node, state, known, len(unknown))
    return known


def _held_mb(
    view: FleetView, catalogue: Catalogue, node: NodeView, state: ModelState
) -> dict[int, int] | None:
    """None: not known."""
    devices = _devices_of(catalogue, node, state)
    if state.status == ModelStatus.FAILED or not devices:
        return {}
    if state.status == ModelStatus.SLEEPING:
        whole_mb: int | None = state.vram_used_mb or 0
    else:
        whole_mb = _whole_mb(view, catalogue, node, state)
        if state.status == ModelStatus.LOADING:  # it has not taken all of it
            whole_mb = max(whole_mb or 0, state.vram_used_mb or 0) or None
    return None if whole_mb is None else dict.fromkeys(devices, _share(whole_mb, len(devices)))


def _whole_mb(
    view: FleetView, catalogue: Catalogue, node: NodeView, state: ModelState
) -> int | None:
    """What it has when it is up: as measured, else as its neuron or the catalogue says; None: nobody does."""
    if state.status in (ModelStatus.LOADED, ModelStatus.UNLOADING) and state.vram_used_mb:
        return state.vram_used_mb
    place = (node.name, state.id)
    entry = find_entry(catalogue, state.id)
    needs = view.needs.get(place)
    said_mb = sum(needs.devices_mb.values()) if needs else 0
    declared_mb = entry.vram_mb if entry else None
    if state.harness == "echo" and declared_mb is None:
        return 0
    return view.measured_mb.get(place) or said_mb or declared_mb


def _unexplained(
    catalogue: Catalogue,
    node: NodeView,
    state: ModelState,
    known: Mapping[Place, Claims],
    parts: int,
) -> dict[int, int]:
    by_index = {device.index: device for device in _devices(node)}
    held = {}
    for index in _devices_of(catalogue, node, state):
        device = by_index[index]
        used_mb = device.vram_total_mb - _measured_mb(node, device)
        rest_mb = used_mb - sum(each.get(index, 0) for each in known.values())
        held[index] = max(0, rest_mb) // parts
    return held


def _devices_of(catalogue: Catalogue, node: NodeView, state: ModelState) -> tuple[int, ...]:
    """Where it is. Engines whose memory no driver sees do not tell, and are taken to be on the first devices."""
    there = [device.index for device in _devices(node)]
    if state.devices:
        return tuple(index for index in state.devices if index in there)
    entry = find_entry(catalogue, state.id)
    if entry is not None:
        return _allowed(node, entry)[: entry.tensor_parallel or entry.min_devices]
    return () if state.harness == "echo" else tuple(there[:1])


def _allowed(node: NodeView, model: Model) -> tuple[int, ...]:
    """The devices that a model may have: as its entry says, and large enough."""
    floor_mb = model.min_device_vram_mb or 0
    return tuple(
        device.index
        for device in _devices(node)
        if device.vram_total_mb >= floor_mb
        and (model.devices is None or device.index in model.devices or device.uuid in model.devices)
    )


def _devices(node: NodeView) -> list[Device]:
    return node.discovery.devices if node.discovery else []


def _measured_mb(node: NodeView, device: Device) -> int:
    """Free by the driver; a device that does not tell counts as empty, since only what is known to be too small is avoided."""
    for told in node.health.devices if node.health else []:
        if told.index == device.index and told.vram_free_mb is not None:
            return told.vram_free_mb
    return device.vram_total_mb


def _share(whole_mb: int, count: int) -> int:
    return -(-whole_mb // max(1, count))
