# SPDX-License-Identifier: GPL-3.0-or-later
"""Every metric of the daemon, in one table. The only importer of prometheus_client.

What models and devices do is read from its owners when it is asked for, so a model that has gone leaves no series.
Labels: `model` is the id of a model that is or was resident, `device` an index, `harness` and `code` closed sets.
"""

from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from cortex_core.node import DeviceHealth, ModelActivity, ModelState, ModelStatus
from neuron.host.messages import Counts
from neuron.measuring import Measuring
from neuron.residents import Residents
from neuron.traffic import Traffic

CONTENT_TYPE = CONTENT_TYPE_LATEST
UNKNOWN = "unknown"

# From an echo engine's tenth of a second to a large model read from a slow disk.
LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1200)
# From no wait at all to `max_wait_s` as it comes.
QUEUE_BUCKETS_S = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

# name, help, value: series with the label `model`
MODEL_GAUGES: list[tuple[str, str, Callable[[ModelActivity], float | None]]] = [
    ("neuron_model_running", "Requests that the engine works on.", lambda m: m.running),
    ("neuron_model_waiting", "Requests that wait inside the engine.", lambda m: m.waiting),
    ("neuron_model_kv_usage_ratio", "KV cache in use, 0 to 1.", lambda m: m.kv_usage_ratio),
    (
        "neuron_model_prefill_tokens_per_second",
        "Prompt tokens read per second.",
        lambda m: m.prefill_tokens_per_s,
    ),
    (
        "neuron_model_decode_tokens_per_second",
        "Tokens written per second.",
        lambda m: m.decode_tokens_per_s,
    ),
]
STATE_GAUGES: list[tuple[str, str, Callable[[ModelState], float | None]]] = [
    ("neuron_model_vram_used_mb", "MiB of device memory in use.", lambda m: m.vram_used_mb),
    ("neuron_model_host_ram_used_mb", "MiB of host memory in use.", lambda m: m.host_ram_used_mb),
]
# name, help, value: what engines count, from when each came up
MODEL_COUNTERS: list[tuple[str, str, Callable[[Counts], float]]] = [
    ("neuron_model_prompt_tokens", "Prompt tokens read.", lambda c: c.prompt_tokens),
    ("neuron_model_generated_tokens", "Tokens written.", lambda c: c.generated_tokens),
    (
        "neuron_model_prefix_cache_queries",
        "Prompt tokens looked for in the prefix cache.",
        lambda c: c.cache_queries,
    ),
    (
        "neuron_model_prefix_cache_hits",
        "Prompt tokens found in the prefix cache.",
        lambda c: c.cache_hits,
    ),
    (
        "neuron_model_preemptions",
        "Requests set back for want of KV cache.",
        lambda c: c.preemptions,
    ),
    (
        "neuron_model_finished",
        "Requests that came to their end in the engine.",
        lambda c: c.finished,
    ),
    ("neuron_model_queue_seconds", "Seconds that these waited inside it.", lambda c: c.queue_s),
    ("neuron_model_prefill_seconds", "Seconds until these were read.", lambda c: c.prefill_s),
    ("neuron_model_decode_seconds", "Seconds that these were written for.", lambda c: c.decode_s),
    ("neuron_model_draft_tokens", "Tokens guessed ahead.", lambda c: c.draft_tokens),
    (
        "neuron_model_accepted_tokens",
        "Tokens guessed ahead that were right.",
        lambda c: c.accepted_tokens,
    ),
]
# name, help, value: series with the label `device`
DEVICE_GAUGES: list[tuple[str, str, Callable[[DeviceHealth], float | None]]] = [
    ("neuron_device_vram_used_mb", "MiB in use.", lambda d: d.vram_used_mb),
    ("neuron_device_vram_free_mb", "MiB that are free.", lambda d: d.vram_free_mb),
    ("neuron_device_utilization_pct", "Busy, 0 to 100.", lambda d: d.utilization_pct),
    ("neuron_device_temperature_celsius", "Temperature.", lambda d: d.temp_c),
    ("neuron_device_power_watts", "Power drawn.", lambda d: d.power_w),
]


class Metrics:
    """Counts what happens, and reads what is."""

    def __init__(self, residents: Residents, measuring: Measuring, traffic: Traffic) -> None:
        # A series more for each of ours, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # its signature has no types
        self._residents = residents
        self._counted: set[str] = set()
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "neuron_requests",
            "Inference requests by their end: `ok`, or the code of the error.",
            ["model", "code"],
            registry=self._registry,
        )
        self._load_seconds = Histogram(
            "neuron_load_seconds",
            "From the wish for a model to its serving.",
            ["harness"],
            buckets=LOAD_BUCKETS_S,
            registry=self._registry,
        )
        self._move_seconds = Histogram(
            "neuron_move_seconds",
            "What sleep, wake and unload take, once requests have ended.",
            ["move"],
            buckets=LOAD_BUCKETS_S,
            registry=self._registry,
        )
        self._leaks = Counter(
            "neuron_memory_leaks",
            "Sleeps and unloads after which a device had less memory free than was promised.",
            registry=self._registry,
        )
        self._failures = Counter(
            "neuron_engine_failures",
            "Engines that did not come up, or died.",
            ["model"],
            registry=self._registry,
        )
        self._queue_seconds = Histogram(
            "neuron_queue_wait_seconds",
            "How long requests waited for their turn, those that did not have to included.",
            ["model"],
            buckets=QUEUE_BUCKETS_S,
            registry=self._registry,
        )
        self._rejections = Counter(
            "neuron_rejections",
            "Requests that came to a model that serves and were refused before its engine, by error code.",
            ["model", "code"],
            registry=self._registry,
        )
        self._registry.register(_Now(residents, measuring, traffic))

    def note_request(self, model: str, code: str) -> None:
        """A request ended. `model` is a resident's id, or `unknown`."""
        if model != UNKNOWN:
            self._counted.add(model)
        self._requests.labels(model, code).inc()

    def note_load(self, harness: str, load_s: float) -> None:
        """A model came up."""
        self._load_seconds.labels(harness).observe(load_s)

    def note_move(self, move: str, move_s: float) -> None:
        """A model moved on the ladder of residency: `sleep`, `wake` or `unload`."""
        self._move_seconds.labels(move).observe(move_s)

    def note_leak(self) -> None:
        """An engine did not give back the device memory that it was to."""
        self._leaks.inc()

    def note_failure(self, model: str) -> None:
        """An engine did not come up, or died."""
        self._counted.add(model)
        self._failures.labels(model).inc()

    def note_queue(self, model: str, waited_s: float) -> None:
        """It is a request's turn."""
        self._counted.add(model)
        self._queue_seconds.labels(model).observe(waited_s)

    def note_rejection(self, model: str, code: str) -> None:
        """A request found no place, or did not get its turn."""
        self._counted.add(model)
        self._rejections.labels(model, code).inc()

    def write(self) -> bytes:
        """The answer of GET /metrics."""
        self._forget_gone()
        return generate_latest(self._registry)

    def _forget_gone(self) -> None:
        """Drop the series of models that have gone: ids come from clients, and would add up for ever."""
        gone = self._counted - {resident.id for resident in self._residents.all()}
        for model in gone:
            for family in (self._requests, self._failures, self._queue_seconds, self._rejections):
                family.remove_by_labels({"model": model})
        self._counted -= gone


class _Now(Collector):
    """What is true at this moment, asked for at each scrape."""

    def __init__(self, residents: Residents, measuring: Measuring, traffic: Traffic) -> None:
        self._residents = residents
        self._measuring = measuring
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        residents = self._residents.all()
        activities = [self._residents.activity(resident) for resident in residents]
        states = [self._residents.state(resident, 0.0) for resident in residents]
        devices = self._measuring.devices()
        yield _statuses(states)
        yield _gauge(
            "neuron_queue_waiting",
            "Requests that wait for their turn in front of the engine.",
            "model",
            self._traffic.queues(),
        )
        for name, text, model_value in MODEL_GAUGES:
            yield _gauge(name, text, "model", [(m.id, model_value(m)) for m in activities])
        counts = [(r.id, r.activity.counts) for r in residents if r.activity.counts is not None]
        for name, text, count in MODEL_COUNTERS:
            family = CounterMetricFamily(name, text, labels=["model"])
            for model, counted in counts:
                family.add_metric([model], count(counted))
            yield family
        for name, text, state_value in STATE_GAUGES:
            yield _gauge(name, text, "model", [(m.id, state_value(m)) for m in states])
        for name, text, device_value in DEVICE_GAUGES:
            rows = [(str(device.index), device_value(device)) for device in devices]
            yield _gauge(name, text, "device", rows)
        free_mb = self._measuring.host_ram_free_mb
        yield _gauge(
            "neuron_host_ram_free_mb", "MiB of host memory that are free.", None, [("", free_mb)]
        )


def _statuses(states: list[ModelState]) -> Metric:
    family = GaugeMetricFamily(
        "neuron_model_status", "1 for the status that a model has.", labels=["model", "status"]
    )
    for state in states:
        for status in ModelStatus:
            family.add_metric([state.id, status], float(state.status == status))
    return family


def _gauge(name: str, text: str, label: str | None, rows: list[tuple[str, float | None]]) -> Metric:
    """One family. What is not known has no series: a 0 would be drawn as a fact."""
    family = GaugeMetricFamily(name, text, labels=[label] if label else [])
    for value_of, value in rows:
        if value is not None:
            family.add_metric([value_of] if label else [], value)
    return family
