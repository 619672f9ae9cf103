# SPDX-License-Identifier: GPL-3.0-or-later
from cortex_core.control import ModelSpec
from cortex_core.node import DeviceHealth
from neuron.discovery import GpuReading
from neuron.host.messages import Activity, Counts, Ready
from neuron.measuring import Measuring
from neuron.metrics import Metrics
from neuron.residents import Failure, Residents
from neuron.testing import FakeGpus, make_gpu
from neuron.traffic import Link, Traffic


def series(metrics: Metrics) -> dict[str, float]:
    lines = metrics.write().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def test_devices_tell_what_they_know_and_nothing_else() -> None:
    health = DeviceHealth(index=0, vram_used_mb=700, vram_free_mb=23_300, power_w=90.5)
    measuring = Measuring(FakeGpus(readings=[GpuReading(health, {})]), [make_gpu()], Residents())
    await measuring.measure()
    found = series(Metrics(Residents(), measuring, Traffic()))
    assert found['neuron_device_vram_used_mb{device="0"}'] == 700
    assert found['neuron_device_power_watts{device="0"}'] == 90.5
    assert found["neuron_host_ram_free_mb"] > 0
    assert not any("temperature" in name for name in found)


def test_a_failed_model_is_counted_until_it_is_forgotten() -> None:
    residents = Residents()
    metrics = Metrics(residents, Measuring(FakeGpus(), [], residents), Traffic())
    residents.note_load(ModelSpec(model_id="m"), 0.0)
    residents.note_ready("m", Ready(), 1.0, 0)
    residents.note_activity("m", Activity(running=2, waiting=1, kv_usage_ratio=0.5))
    found = series(metrics)
    assert not any("tokens_total" in name for name in found)
    counts = Counts(
        prompt_tokens=9, generated_tokens=8, cache_queries=7, cache_hits=6, preemptions=5,
        finished=4, queue_s=0.5, prefill_s=1.5, decode_s=2.5, draft_tokens=3, accepted_tokens=2,
    )  # fmt: skip
    residents.note_activity("m", Activity(running=2, waiting=1, kv_usage_ratio=0.5, counts=counts))
    found = series(metrics)
    assert found['neuron_model_prompt_tokens_total{model="m"}'] == 9
    assert found['neuron_model_generated_tokens_total{model="m"}'] == 8
    assert found['neuron_model_prefix_cache_queries_total{model="m"}'] == 7
    assert found['neuron_model_prefix_cache_hits_total{model="m"}'] == 6
    assert found['neuron_model_preemptions_total{model="m"}'] == 5
    assert found['neuron_model_finished_total{model="m"}'] == 4
    assert found['neuron_model_queue_seconds_total{model="m"}'] == 0.5
    assert found['neuron_model_prefill_seconds_total{model="m"}'] == 1.5
    assert found['neuron_model_decode_seconds_total{model="m"}'] == 2.5
    assert found['neuron_model_draft_tokens_total{model="m"}'] == 3
    assert found['neuron_model_accepted_tokens_total{model="m"}'] == 2
    assert found['neuron_model_running{model="m"}'] == 2
    assert found['neuron_model_kv_usage_ratio{model="m"}'] == 0.5
    residents.note_failed("m", Failure(kind="engine_died", reason="x"))
    metrics.note_failure("m")
    found = series(metrics)
    assert found['neuron_engine_failures_total{model="m"}'] == 1
    assert found['neuron_model_status{model="m",status="failed"}'] == 1
    residents.note_unload("m")
    residents.note_gone("m")
    assert not any("model=" in name for name in series(metrics))


def test_a_load_falls_into_a_bucket() -> None:
    metrics = Metrics(Residents(), Measuring(FakeGpus(), [], Residents()), Traffic())
    metrics.note_load("vllm", 3.0)
    found = series(metrics)
    assert found['neuron_load_seconds_bucket{harness="vllm",le="2.5"}'] == 0
    assert found['neuron_load_seconds_bucket{harness="vllm",le="5.0"}'] == 1
    assert not any("_created" in name for name in found)


async def test_queues_are_told_and_forgotten_with_their_models() -> None:
    residents, traffic = Residents(), Traffic()
    metrics = Metrics(residents, Measuring(FakeGpus(), [], residents), traffic)
    residents.note_load(ModelSpec(model_id="m"), 0.0)
    residents.note_ready("m", Ready(), 1.0, 0)
    traffic.note_open("m", Link("unix:/nowhere"))
    metrics.note_queue("m", 0.3)
    metrics.note_rejection("m", "queue_full")
    found = series(metrics)
    assert found['neuron_queue_waiting{model="m"}'] == 0
    assert found['neuron_queue_wait_seconds_bucket{le="0.1",model="m"}'] == 0
    assert found['neuron_queue_wait_seconds_bucket{le="0.5",model="m"}'] == 1
    assert found['neuron_rejections_total{code="queue_full",model="m"}'] == 1
    residents.note_unload("m")
    residents.note_gone("m")
    traffic.note_gone("m")
    assert not any("model=" in name for name in series(metrics))
