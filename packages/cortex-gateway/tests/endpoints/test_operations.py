# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators ask, over HTTP."""

from typing import Any

import pytest

from cortex_core.testing import collect, make_device, make_discovery, make_state


@pytest.mark.parametrize("path", ["/", "/health"])
async def test_health_is_told_at_both_paths_and_to_head(fake: Any, start: Any, path: str) -> None:
    async with start(fake(), "http://127.0.0.1:9") as fleet:
        told = await fleet.get(path)
        head = await collect(fleet.gateway.front, "HEAD", path)
    assert (told["status"], told["nodes"]) == ("ok", {"healthy": 1, "total": 2})
    assert told["catalogue"]["path"] == "/x/models.toml"
    assert head.status == 200


async def test_the_version_is_never_empty(start: Any) -> None:
    async with start() as fleet:
        told = await fleet.get("/version")
    assert told["git_sha"]
    assert told["packages"]["helexa-cortex-gateway"] == "0.1.0"


async def test_the_fleet_is_told_with_its_nodes(fake: Any, start: Any) -> None:
    found = make_discovery(make_device(0, 24_000))
    async with start(fake(make_state("m"), found=found), "http://127.0.0.1:9") as fleet:
        await fleet.ask()
        told = await fleet.get("/fleet")
    assert [(node["name"], node["up"]) for node in told["nodes"]] == [("a", True), ("b", False)]
    assert told["nodes"][0]["devices"][0]["vram_total_mb"] == 24_000
    assert [model["id"] for model in told["nodes"][0]["models"]] == ["m"]
    assert [decided["decision"] for decided in told["decisions"]] == ["serve"]


async def test_the_metrics_port_has_metrics_and_nothing_else(start: Any) -> None:
    async with start() as fleet:
        front = fleet.gateway.metrics_front
        metrics = await collect(front, "GET", "/metrics")
        other = await collect(front, "GET", "/health")
        api = await collect(fleet.gateway.front, "GET", "/metrics")
    assert metrics.status == 200
    assert (metrics.header(b"content-type") or b"").startswith(b"text/plain; version=")
    assert (other.status, other.json["error"]["code"]) == (404, "route_not_found")
    assert api.status == 404
