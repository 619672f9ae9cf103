# SPDX-License-Identifier: GPL-3.0-or-later
"""Every metric of the gateway, and the text that Prometheus reads. The only importer of prometheus_client here.

To add one: a row in TABLE, and the line that moves it. Counters and histograms are moved by what happens; gauges are
read off the fleet when they are asked for, so that what is gone is not shown. Labels come from bounded sets: nodes
that are configured, models that a catalogue or neuron names, codes of `cortex_core.errors`; never a client's string.
"""

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from cortex_core.node import DeviceHealth
from cortex_gateway.fleet import Fleet
from cortex_gateway.view import FleetView

CONTENT_TYPE = CONTENT_TYPE_LATEST

_PLACE = ("model", "node")
# A whole answer: from a cached one-word reply to a long agent turn behind a cold load.
_LONG_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
# The first token: a small model answers in tens of milliseconds, a long prompt takes minutes.
_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
# Per request: from a large model in host RAM to a small one on a fast device.
_TOKENS_PER_S = (1, 2.5, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 400, 800)
# A load: a wake takes seconds, a cold start from a network source an hour.
_LOAD_S = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
# Our own part of a request: tens of microseconds, unless the event loop is behind.
_OVERHEAD_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5)


class Row(NamedTuple):
    """One metric. `buckets` are upper bounds, of histograms alone."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TABLE = (
    Row("cortex_requests_total", "counter", "Requests sent to a node, each once", _PLACE),
    Row("cortex_request_errors_total", "counter", "Requests that ended in a server error, before or in their stream", _PLACE),
    Row("cortex_request_duration_seconds", "histogram", "From a request's arrival to the end of its answer", _PLACE, _LONG_S),
    Row("cortex_time_to_first_token_seconds", "histogram", "From a request's arrival to the first content of its stream, loads included", _PLACE, _FIRST_S),
    Row("cortex_tokens_per_second", "histogram", "Tokens per second of a stream, from its first token to its last", _PLACE, _TOKENS_PER_S),
    Row("cortex_prompt_tokens_total", "counter", "Tokens of prompts", _PLACE),
    Row("cortex_completion_tokens_total", "counter", "Tokens of answers; where a node reports none, stream events with content", _PLACE),
    Row("cortex_cold_starts_total", "counter", "Loads that the gateway asked for and that were done", _PLACE),
    Row("cortex_load_seconds", "histogram", "How long those loads took", _PLACE, _LOAD_S),
    Row("cortex_wakes_total", "counter", "Wakes of sleeping models that the gateway asked for and that were done", _PLACE),
    Row("cortex_wake_seconds", "histogram", "How long those wakes took", _PLACE, _LOAD_S),
    Row("cortex_evictions_total", "counter", "Models that were put to sleep or unloaded to make room, or because nobody asked for them", _PLACE),
    Row("cortex_defrags_total", "counter", "Idle models that were reloaded since the memory of their node had seen enough unloads and wakes", _PLACE),
    Row("cortex_rejections_total", "counter", "Requests refused before they were sent to a node, by error code", ("code",)),
    Row("cortex_retries_total", "counter", "Requests that a node refused (401, 429, 503) or lost before their first byte, and that another was asked for", ("model", "node", "reason")),
    Row("cortex_fallbacks_total", "counter", "Requests that another model was asked for, as `fallbacks` says, by the error code of the one before", ("model", "fallback", "code")),
    Row("cortex_prefix_hygiene_total", "counter", "Requests that a rule of [prefix_hygiene] took something out of", ("rule",)),
    Row("cortex_overhead_seconds", "histogram", "The gateway's own part of a request, waiting for loads and nodes left out", (), _OVERHEAD_S),
    Row("cortex_node_up", "gauge", "1: the node answers; 0: it does not", ("node",)),
    Row("cortex_tasks", "gauge", "Tasks of this gateway's event loop now: a few per node and per request"),
    Row("cortex_in_flight", "gauge", "Requests that this gateway has at a node now", _PLACE),
    Row("cortex_device_vram_used_mb", "gauge", "MiB used on a device", ("node", "device")),
    Row("cortex_device_vram_free_mb", "gauge", "MiB free on a device", ("node", "device")),
    Row("cortex_device_utilization_pct", "gauge", "How busy a device is, 0 to 100", ("node", "device")),
    Row("cortex_device_temp_c", "gauge", "Temperature of a device", ("node", "device")),
    Row("cortex_device_power_w", "gauge", "Power draw of a device", ("node", "device")),
)  # fmt: skip


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was sent to a node, at its end.

    Attributes:
        failed: it ended in a server error; a client that leaves is none.
        duration_s: None: the client left, so how long it would have taken is not known.
        ttft_s: seconds to the first content; None: no stream, or none came.
        tokens_per_s: None: no stream, or too short to tell.
        prompt_tokens: None: the node reported none.
    """

    model: str
    node: str
    failed: bool
    duration_s: float | None
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int = 0


class Metrics:
    """The gateway's series, in a registry of their own."""

    def __init__(self, fleet: Fleet) -> None:
        # a time stamp per series, which nobody asked for
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._counters = {
            row.name: Counter(row.name, row.help, row.labels, registry=self._registry)
            for row in TABLE
            if row.kind == "counter"
        }
        self._histograms = {
            row.name: Histogram(
                row.name, row.help, row.labels, buckets=row.buckets, registry=self._registry
            )
            for row in TABLE
            if row.kind == "histogram"
        }
        self._registry.register(_Gauges(fleet))

    def render(self) -> bytes:
        """Everything, as Prometheus' text."""
        return generate_latest(self._registry)

    def note_done(self, done: Done) -> None:
        """A request that was sent to a node has ended."""
        place = (done.model, done.node)
        self._count("cortex_requests_total", place)
        if done.failed:
            self._count("cortex_request_errors_total", place)
        if done.prompt_tokens:
            self._count("cortex_prompt_tokens_total", place, done.prompt_tokens)
        if done.completion_tokens:
            self._count("cortex_completion_tokens_total", place, done.completion_tokens)
        self._observe("cortex_request_duration_seconds", place, done.duration_s)
        self._observe("cortex_time_to_first_token_seconds", place, done.ttft_s)
        self._observe("cortex_tokens_per_second", place, done.tokens_per_s)

    def note_rejection(self, code: str) -> None:
        """A request was refused before it was sent to a node."""
        self._count("cortex_rejections_total", (code,))

    def note_retry(self, model: str, node: str, *, lost: bool) -> None:
        """A node refused a request, or lost it, and another is asked."""
        self._count("cortex_retries_total", (model, node, "lost" if lost else "refused"))

    def note_fallback(self, model: str, fallback: str, code: str) -> None:
        """Another model serves in a model's place, since that one ended in an error of this code."""
        self._count("cortex_fallbacks_total", (model, fallback, code))

    def note_hygiene(self, rule: str) -> None:
        """A rule of prefix hygiene took something out of a prompt."""
        self._count("cortex_prefix_hygiene_total", (rule,))

    def note_up(self, model: str, node: str, seconds: float, *, woken: bool) -> None:
        """A load or wake that we asked for is done."""
        count, took = (
            ("cortex_wakes_total", "cortex_wake_seconds")
            if woken
            else ("cortex_cold_starts_total", "cortex_load_seconds")
        )
        self._count(count, (model, node))
        self._observe(took, (model, node), seconds)

    def note_eviction(self, model: str, node: str) -> None:
        """A model was put to sleep or unloaded, not by an operator."""
        self._count("cortex_evictions_total", (model, node))

    def note_defrag(self, model: str, node: str) -> None:
        """An idle model was reloaded, for the sake of its node's memory."""
        self._count("cortex_defrags_total", (model, node))

    def note_overhead(self, overhead_s: float) -> None:
        """Our own part of one request."""
        self._histograms["cortex_overhead_seconds"].observe(overhead_s)

    def _count(self, name: str, labels: tuple[str, ...], by: float = 1) -> None:
        self._counters[name].labels(*labels).inc(by)

    def _observe(self, name: str, labels: tuple[str, ...], value: float | None) -> None:
        if value is not None:
            self._histograms[name].labels(*labels).observe(value)


class _Gauges(Collector):
    """What is so now, read off the fleet when Prometheus asks."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[GaugeMetricFamily]:
        view = self._fleet.view()
        samples = {row.name: [] for row in TABLE if row.kind == "gauge"}  # type: dict[str, list[tuple[tuple[str, ...], float]]]
        for name, labels, value in _samples(view):
            samples[name].append((labels, value))
        for row in TABLE:
            if row.kind == "gauge":
                family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
                for labels, value in samples[row.name]:
                    family.add_metric(labels, value)
                yield family


def _samples(view: FleetView) -> Iterator[tuple[str, tuple[str, ...], float]]:
    for (node_name, model), count in view.in_flight.items():
        yield "cortex_in_flight", (model, node_name), count
    yield from _of_loop()
    for node in view.nodes:
        yield "cortex_node_up", (node.name,), float(node.is_up)
        for device in node.health.devices if node.is_up and node.health else []:
            yield from _of_device(node.name, device)


def _of_loop() -> Iterator[tuple[str, tuple[str, ...], float]]:
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # asked from where no loop runs
        return
    yield "cortex_tasks", (), float(len(tasks))


def _of_device(node: str, device: DeviceHealth) -> Iterator[tuple[str, tuple[str, ...], float]]:
    for field in ("vram_used_mb", "vram_free_mb", "utilization_pct", "temp_c", "power_w"):
        value = getattr(device, field)
        if value is not None:  # what the driver does not tell is not 0
            yield f"cortex_device_{field}", (node, str(device.index)), value
