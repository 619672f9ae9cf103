# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet, what was done to it, and what would be, as tables for a terminal. Pure."""

from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cortex_cli.view import Device, DoneAnswer, Fleet, FleetPlan, Model, Node, NodePlan, Story

_GOOD, _PENDING, _BAD = "green", "yellow", "red"
_COLOURS = {"up": _GOOD, "loaded": _GOOD, "down": _BAD, "failed": _BAD}
UNKNOWN = "-"
# A screen has no room for more, and --json has all of them.
MOST_REQUESTS = 12


def render_fleet(fleet: Fleet) -> RenderableType:
    """Nodes with their devices, then models with where they are."""
    if not fleet.nodes:
        return Text("No nodes are configured: add [[neurons]] to cortex.toml.")
    wrong = (
        fleet.config_error
        and f"The configuration is wrong, the one before counts: {fleet.config_error}"
    )
    parts: list[RenderableType] = [Text(wrong, style=_BAD), Text()] if wrong else []
    parts += [_nodes(fleet), Text(), _models(fleet)]
    if fleet.requests:
        parts += [Text(), _running(fleet)]
    return Group(*parts)


def render_done(answer: DoneAnswer) -> RenderableType:
    """What an order led to, place by place."""
    if not answer.done:
        return Text("It is nowhere; nothing had to be done.")
    table = _table("model", "node", "status", "note")
    for done in answer.done:
        note = "it was already" if done.already else ""
        table.add_row(done.model_id or UNKNOWN, done.node or "every", _coloured(done.status), note)
    return table


def render_plan(plan: FleetPlan) -> RenderableType:
    """What the next request would lead to, and what each node could do."""
    where = f" on {plan.chosen}" if plan.chosen else ""
    table = _table("node", "fits", "would", "takes", "needs", "makes room", "why")
    for node in plan.nodes:
        fits = Text("yes", style=_GOOD) if node.fits else Text("no", style=_BAD)
        why = node.reason.removeprefix(f"{node.node}: ")
        takes = UNKNOWN if node.expected_s is None else f"{node.expected_s:.1f} s"
        table.add_row(node.node, fits, node.decision, takes, _needs(node), _goes(node), why)
    head = Text(f"{plan.model_id}: {plan.decision}{where} ({plan.reason})")
    return Group(head, Text(), table)


def _needs(node: NodePlan) -> str:
    return ", ".join(f"{mb} MiB" for mb in node.needed_mb.values()) or UNKNOWN


def _goes(node: NodePlan) -> str:
    return ", ".join(f"{model} ({how})" for model, how in node.would_displace.items()) or UNKNOWN


def _nodes(fleet: Fleet) -> RenderableType:
    table = _table("node", "status", "endpoint", "device", "memory", "use")
    for node in fleet.nodes:
        first, *others = [_device(device) for device in node.devices] or [(UNKNOWN,) * 3]
        table.add_row(node.name, _node_status(node), node.endpoint, *first)
        for device in others:
            table.add_row("", "", "", *device)
    told = [f"{node.name}: {node.problem}" for node in fleet.nodes if node.problem and not node.up]
    return Group(table, Text(), *(Text(each, style=_BAD) for each in told)) if told else table


def _node_status(node: Node) -> Text:
    status = _coloured("up" if node.up else "down")
    if not node.up and node.seen_s_ago is not None:
        status.append(f" for {node.seen_s_ago:.0f} s", style="")
    if node.drained:
        status.append(", drained", style=_PENDING)
    return status


def _running(fleet: Fleet) -> RenderableType:
    """The oldest of the requests that run: those that somebody waits for."""
    table = _table("request", "model", "node", "since", "now")
    for each in fleet.requests[:MOST_REQUESTS]:
        now = "serving" if each.step == "serve" else f"{each.step}: {each.reason}"
        since = f"{each.duration_s:.1f} s"
        table.add_row(each.request_id, each.model, each.node or UNKNOWN, since, now)
    more = len(fleet.requests) - MOST_REQUESTS
    return Group(table, Text(f"and {more} more")) if more > 0 else table


def render_story(story: Story) -> RenderableType:
    """What became of a request, decision by decision, each with the nodes that were considered."""
    table = _table("after", "decision", "node", "why", "considered")
    for step in story.steps:
        times = f" (x{step.times})" if step.times > 1 else ""
        seen = "\n".join(f"{each.node}: {each.says}" for each in step.candidates)
        table.add_row(
            f"{step.after_s:.3f} s", step.decision + times, step.node or UNKNOWN, step.reason, seen
        )
    return Group(Text(_end(story)), Text(_times(story)), Text(), table)


def _end(story: Story) -> str:
    served = (
        "" if story.served_model in (None, story.model) else f", served by {story.served_model}"
    )
    where = f" on {story.node}" if story.node else ""
    status = f" with {story.status}" if story.status is not None else ""
    code = f" {story.error_code}" if story.error_code else ""
    outcome = {"left": "the client left"}.get(story.outcome, story.outcome)
    return f"{story.request_id}: {story.model}{served}, {outcome}{where}{status}{code}"


def _times(story: Story) -> str:
    came = datetime.fromtimestamp(story.at, UTC).isoformat(timespec="seconds")
    parts = [f"It came at {came} ({story.dialect}) and took {story.duration_s:.3f} s"]
    if story.load_wait_s:
        parts.append(f"{story.load_wait_s:.3f} s of them waiting for its model")
    if story.queue_wait_s:
        parts.append(f"{story.queue_wait_s:.3f} s of those for room")
    return ", ".join(parts) + "."


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
