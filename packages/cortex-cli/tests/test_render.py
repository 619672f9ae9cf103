# SPDX-License-Identifier: GPL-3.0-or-later
import io

from rich.console import Console

from cortex_cli.render import render_fleet
from cortex_cli.view import Device, Fleet, Model, Node, RunningRequest
from cortex_core.node import Progress


def shown(*nodes: Node) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=140).print(render_fleet(Fleet(nodes=list(nodes))))
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


def make_node(*models: Model, devices: list[Device] | None = None, up: bool = True) -> Node:
    return Node(
        name="box", endpoint="http://box:1", up=up, models=list(models), devices=devices or []
    )


def test_a_gateway_without_nodes_says_what_to_do() -> None:
    assert shown() == ["No nodes are configured: add [[neurons]] to cortex.toml."]


def test_a_node_is_shown_with_each_of_its_devices() -> None:
    devices = [
        Device(name="GPU one", vram_total_mb=24_000, vram_used_mb=2_000, utilization_pct=37.4),
        Device(name="GPU two", vram_total_mb=48_000),
    ]
    assert shown(make_node(devices=devices)) == [
        "node status endpoint device memory use",
        "box up http://box:1 GPU one 2000 / 24000 MiB 37 %",
        "GPU two - / 48000 MiB -",
        "No model is loaded.",
    ]


def test_a_node_that_never_answered_is_down() -> None:
    assert shown(make_node(up=False))[1] == "box down http://box:1 - - -"


def test_a_node_that_was_lost_tells_for_how_long() -> None:
    node = Node(name="box", endpoint="http://box:1", up=False, seen_s_ago=12.3)
    assert shown(node)[1] == "box down for 12 s http://box:1 - - -"


def test_a_drained_node_says_so() -> None:
    node = Node(name="box", endpoint="http://box:1", up=True, drained=True)
    assert shown(node)[1] == "box up, drained http://box:1 - - -"


def test_models_are_shown_by_name_with_what_matters_now() -> None:
    node = make_node(
        Model(id="c", status="failed", last_error="no room", harness="vllm"),
        Model(
            id="b",
            status="loaded",
            running=3,
            waiting=2,
            load_s=4.25,
            last_error="long ago",
            harness="vllm",
        ),
        Model(
            id="a",
            status="loading",
            progress=Progress(phase="warming_up", ratio=0.42),
            harness="echo",
        ),
    )
    assert shown(node)[2:] == [
        "model status node harness requests note",
        "a loading box echo 0 running warming up 42%",
        "b loaded box vllm 3 running, 2 waiting loaded in 4.2 s",
        "c failed box vllm 0 running no room",
    ]


def test_a_node_that_cannot_be_used_says_why_and_a_wrong_configuration_is_told() -> None:
    node = Node(name="box", endpoint="http://box:1", up=False, problem="it refuses our secret")
    assert "box: it refuses our secret" in shown(node)
    out = io.StringIO()
    Console(file=out, width=140).print(render_fleet(Fleet(nodes=[node], config_error="line 3")))
    first = out.getvalue().splitlines()[0]
    assert first == "The configuration is wrong, the one before counts: line 3"


def test_requests_that_run_are_shown_and_no_more_than_fit() -> None:
    running = [
        RunningRequest(request_id=f"r{n}", model="m", duration_s=1.5, step="load", reason="why")
        for n in range(14)
    ]
    out = io.StringIO()
    fleet = Fleet(nodes=[make_node()], requests=running)
    Console(file=out, width=140).print(render_fleet(fleet))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert "r0 m - 1.5 s load: why" in lines
    assert lines[-1] == "and 2 more"
