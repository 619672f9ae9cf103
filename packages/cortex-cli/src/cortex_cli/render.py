# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet as tables for a terminal. Pure."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cortex_cli.view import Device, Fleet, Model, Node

_GOOD, _PENDING, _BAD = "green", "yellow", "red"
_COLOURS = {"up": _GOOD, "loaded": _GOOD, "down": _BAD, "failed": _BAD}
UNKNOWN = "-"


def render_fleet(fleet: Fleet) -> RenderableType:
    """Nodes with their devices, then models with where they are."""
    if not fleet.nodes:
        return Text("No nodes are configured: add [[neurons]] to cortex.toml.")
    return Group(_nodes(fleet), Text(), _models(fleet))


def _nodes(fleet: Fleet) -> Table:
    table = _table("node", "status", "endpoint", "device", "memory", "use")
    for node in fleet.nodes:
        first, *others = [_device(device) for device in node.devices] or [(UNKNOWN,) * 3]
        table.add_row(node.name, _node_status(node), node.endpoint, *first)
        for device in others:
            table.add_row("", "", "", *device)
    return table


def _node_status(node: Node) -> Text:
    status = _coloured("up" if node.up else "down")
    if not node.up and node.seen_s_ago is not None:
        status.append(f" for {node.seen_s_ago:.0f} s", style="")
    return status


def _device(device: Device) -> tuple[str, ...]:
    used = UNKNOWN if device.vram_used_mb is None else device.vram_used_mb
    use = UNKNOWN if device.utilization_pct is None else f"{device.utilization_pct:.0f} %"
    return device.name, f"{used} / {device.vram_total_mb} MiB", use


def _models(fleet: Fleet) -> RenderableType:
    rows = [(model, node) for node in fleet.nodes for model in node.models]
    if not rows:
        return Text("No model is loaded.")
    table = _table("model", "status", "node", "harness", "requests", "note")
    for model, node in sorted(rows, key=lambda row: (row[0].id, row[1].name)):
        status = _coloured(model.status)
        table.add_row(model.id, status, node.name, model.harness, _requests(model), _note(model))
    return table


def _requests(model: Model) -> str:
    waiting = f", {model.waiting} waiting" if model.waiting else ""
    return f"{model.running} running{waiting}"


def _note(model: Model) -> str:
    """What a person would ask next: how far it is, what went wrong, how long it took."""
    if model.progress:
        ratio = "" if model.progress.ratio is None else f" {model.progress.ratio:.0%}"
        return f"{model.progress.phase.replace('_', ' ')}{ratio}"
    if model.status != "loaded" and model.last_error:
        return model.last_error
    return "" if model.load_s is None else f"loaded in {model.load_s:.1f} s"


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="dim")


def _coloured(status: str) -> Text:
    return Text(status, style=_COLOURS.get(status, _PENDING))
