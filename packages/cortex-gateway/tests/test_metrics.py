# SPDX-License-Identifier: GPL-3.0-or-later
"""The text that Prometheus reads, line by line."""

import asyncio
from typing import Any

from cortex_core.node import DeviceHealth, Health
from cortex_gateway.fleet import Fleet, Report
from cortex_gateway.metrics import TABLE, Done, Metrics


def make_done(**fields: Any) -> Done:
    return Done(**{"model": "m", "node": "a", "failed": False, "duration_s": 0.3, **fields})


def lines(metrics: Metrics) -> list[str]:
    return metrics.render().decode().splitlines()


def test_every_metric_has_its_type_and_help() -> None:
    text = "\n".join(lines(Metrics(Fleet([]))))
    for row in TABLE:
        assert f"# TYPE {row.name} {row.kind}\n" in text + "\n"
        assert f"# HELP {row.name} {row.help}\n" in text
        assert bool(row.buckets) is (row.kind == "histogram")
    assert "quantile=" not in text
    assert "_created" not in text


def test_a_request_is_counted_once_with_what_it_cost() -> None:
    metrics = Metrics(Fleet([]))
    metrics.note_done(
        make_done(ttft_s=0.04, tokens_per_s=33.0, prompt_tokens=7, completion_tokens=5)
    )
    metrics.note_done(make_done(failed=True))
    found = lines(metrics)
    assert 'cortex_requests_total{model="m",node="a"} 2.0' in found
    assert 'cortex_request_errors_total{model="m",node="a"} 1.0' in found
    assert 'cortex_prompt_tokens_total{model="m",node="a"} 7.0' in found
    assert 'cortex_completion_tokens_total{model="m",node="a"} 5.0' in found
    assert 'cortex_request_duration_seconds_bucket{le="0.25",model="m",node="a"} 0.0' in found
    assert 'cortex_request_duration_seconds_bucket{le="0.5",model="m",node="a"} 2.0' in found
    assert 'cortex_time_to_first_token_seconds_bucket{le="0.025",model="m",node="a"} 0.0' in found
    assert 'cortex_time_to_first_token_seconds_bucket{le="0.05",model="m",node="a"} 1.0' in found
    assert 'cortex_tokens_per_second_bucket{le="30.0",model="m",node="a"} 0.0' in found
    assert 'cortex_tokens_per_second_bucket{le="40.0",model="m",node="a"} 1.0' in found


def test_what_is_not_known_is_not_counted() -> None:
    metrics = Metrics(Fleet([]))
    metrics.note_done(make_done(duration_s=None))
    samples = [line for line in lines(metrics) if line.startswith("cortex_") and "{m" in line]
    assert samples == ['cortex_requests_total{model="m",node="a"} 1.0']


def test_rejections_loads_and_overhead() -> None:
    metrics = Metrics(Fleet([]))
    metrics.note_rejection("model_not_found")
    metrics.note_up("m", "a", 4.0, woken=False)
    metrics.note_overhead(0.0002)
    found = lines(metrics)
    assert 'cortex_rejections_total{code="model_not_found"} 1.0' in found
    assert 'cortex_cold_starts_total{model="m",node="a"} 1.0' in found
    assert 'cortex_load_seconds_bucket{le="2.0",model="m",node="a"} 0.0' in found
    assert 'cortex_load_seconds_bucket{le="5.0",model="m",node="a"} 1.0' in found
    assert 'cortex_overhead_seconds_bucket{le="0.0001"} 0.0' in found
    assert 'cortex_overhead_seconds_bucket{le="0.00025"} 1.0' in found


def test_gauges_are_read_off_the_fleet_and_what_is_gone_is_not_shown() -> None:
    fleet = Fleet([("a", "http://a"), ("b", "http://b")], misses=1)
    metrics = Metrics(fleet)
    devices = [DeviceHealth(index=0, vram_used_mb=5, utilization_pct=50.0)]
    fleet.apply_report("a", Report(models=(), health=Health(uptime_secs=1, devices=devices)), 1.0)
    with fleet.serving("a", "m"):
        found = lines(metrics)
    assert 'cortex_node_up{node="a"} 1.0' in found
    assert 'cortex_node_up{node="b"} 0.0' in found
    assert 'cortex_in_flight{model="m",node="a"} 1.0' in found
    assert 'cortex_device_vram_used_mb{device="0",node="a"} 5.0' in found
    assert 'cortex_device_utilization_pct{device="0",node="a"} 50.0' in found
    # the driver does not tell, which is not 0
    assert not [line for line in found if line.startswith("cortex_device_temp_c{")]
    fleet.apply_miss("a")
    found = lines(metrics)
    assert 'cortex_node_up{node="a"} 0.0' in found
    assert not [line for line in found if line.startswith(("cortex_device", "cortex_in_flight{"))]


async def test_tasks_are_told_where_a_loop_runs() -> None:
    found = [line for line in lines(Metrics(Fleet([]))) if line.startswith("cortex_tasks ")]
    assert found == [f"cortex_tasks {float(len(asyncio.all_tasks()))}"]


def test_tasks_are_not_told_where_none_runs() -> None:
    assert not [line for line in lines(Metrics(Fleet([]))) if line.startswith("cortex_tasks ")]
