# SPDX-License-Identifier: GPL-3.0-or-later
"""What a neuron says of itself when polled: GET /models and GET /health. Pure.

Units: `_mb` is MiB, `_pct` 0 to 100, `_ratio` 0 to 1, `_s` and `_secs` seconds. None means not known.
"""

from enum import StrEnum

import msgspec


class ModelStatus(StrEnum):
    """What a resident model is doing. On the wire it is a plain string: a word not in here is not routable."""

    LOADING = "loading"
    LOADED = "loaded"
    SLEEPING = "sleeping"
    UNLOADING = "unloading"
    RECOVERING = "recovering"
    FAILED = "failed"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a load is. `ratio` and `eta_s` are None where nothing was ever measured."""

    phase: str
    ratio: float | None = None
    eta_s: float | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens: `context` is prompt and answer together; `output` the longest answer."""

    context: int | None = None
    output: int | None = None


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """One resident model: an entry of GET /models.

    Attributes:
        id: as it was loaded.
        status: a ModelStatus, or a word of a newer neuron.
        devices: indices.
        vram_used_mb: measured, over all devices.
        host_ram_used_mb: measured, the engine's whole process tree.
        last_error: why it is `failed`, or was last.
        load_s, wake_s, sleep_s, unload_s: what it took when last done here.
        adapters: LoRA adapters that it serves as models of their own, while it serves: name to repository.
    """

    id: str
    harness: str
    status: str
    devices: list[int] = []
    vram_used_mb: int | None = None
    host_ram_used_mb: int | None = None
    capabilities: list[str] = []
    limits: Limits = Limits()
    can_sleep: bool = False
    progress: Progress | None = None
    last_error: str | None = None
    load_s: float | None = None
    wake_s: float | None = None
    sleep_s: float | None = None
    unload_s: float | None = None
    adapters: dict[str, str] = {}


class FailedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A default model that did not come up."""

    model_id: str
    error: str


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """How far the default models are. `state` is `pre_warming` until each was tried, then `ready`."""

    state: str = "ready"
    pending: list[str] = []
    in_progress: list[str] = []
    completed: list[str] = []
    failed: list[FailedModel] = []


class DeviceHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One device now. None: the driver does not tell."""

    index: int
    vram_used_mb: int | None = None
    vram_free_mb: int | None = None
    utilization_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None


class ModelActivity(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's engine is doing, by its own count.

    `running` and `waiting` are requests inside the engine; the maxima are the neuron's admission limits, `max_wait_s` the
    seconds that a request may wait before its answer begins.
    """

    id: str
    status: str
    running: int = 0
    waiting: int = 0
    max_running: int | None = None
    max_waiting: int | None = None
    max_wait_s: float | None = None
    kv_usage_ratio: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of GET /health.

    Attributes:
        instance: which daemon answers: drawn at its start, so that two that say the same are one. None: an older one.
        cycles: finished unloads and wakes since a model was last reloaded, counted over restarts: each may leave holes in
            the memory of devices.
    """

    uptime_secs: float
    instance: str | None = None
    devices: list[DeviceHealth] = []
    host_ram_free_mb: int | None = None
    activation: Activation = Activation()
    models: list[ModelActivity] = []
    cycles: int = 0
