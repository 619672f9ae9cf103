# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models are resident, and what is known of each. The one owner; it is told, and asked, and never waits. Pure."""

from collections.abc import Collection, Mapping

import msgspec

from cortex_core.control import ModelSpec
from cortex_core.node import ModelActivity, ModelState, ModelStatus, Progress
from cortex_core.sources import read_model_name
from neuron.costs import Costs
from neuron.host.messages import Activity, Phase, Ready
from neuron.lifecycle import Event, next_status

# Failed models stay to be looked at; ids come from clients, so there is a bound. The oldest goes.
MAX_FAILED = 32


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a model is failed.

    Attributes:
        kind: as in LoadRefusedError, or `engine_start_failed`, `start_timeout`, `start_hung`, `engine_died`, `engine_hung`,
            `engine_poisoned`, `wake_failed`, `restarts_exhausted`.
        reason: the true cause.
        suggestion: what to do about it; may be empty.
    """

    kind: str
    reason: str
    suggestion: str = ""


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """One model that is here, in whatever status.

    Attributes:
        spec: what was asked for.
        began_s: when its load began, monotonic seconds.
        phase: how far its load is.
        devices: indices of the devices it is on.
        claims_mb: MiB set aside for it on each device, by index.
        pid: of its engine host, which leads a process group; None: there is none.
        ready: what its engine told of itself; None: it never came up.
        created: when it came up, Unix seconds.
        activity: as last heard.
        failure: why it is failed, or was last.
        vram_used_mb, host_ram_used_mb: as last measured.
        drained: of one that sleeps: its requests have ended.
    """

    spec: ModelSpec
    status: ModelStatus
    began_s: float
    phase: Phase
    devices: list[int] = []
    claims_mb: Mapping[int, int] = {}
    pid: int | None = None
    ready: Ready | None = None
    created: int = 0
    activity: Activity = Activity()
    failure: Failure | None = None
    vram_used_mb: int | None = None
    host_ram_used_mb: int | None = None
    drained: bool = False

    @property
    def id(self) -> str:
        """The id it was loaded under."""
        return self.spec.model_id


class Residents:
    """The models of this machine, whatever their harness.

    Attributes:
        costs: what each took when that was last done; kept past an unload, to tell how long the next will take.
    """

    def __init__(self, costs: Costs | None = None) -> None:
        self._by_id: dict[str, Resident] = {}
        self._default_source: str | None = None
        self.costs = costs or Costs()

    def note_default_source(self, scheme: str) -> None:
        """Ids without a scheme are of this source: `org/name` is the same model as `scheme:org/name`."""
        self._default_source = scheme

    def all(self) -> list[Resident]:
        """Every resident model, in the order of their loads."""
        return list(self._by_id.values())

    def get(self, model_id: str) -> Resident | None:
        """The model that was loaded under exactly this id."""
        return self._by_id.get(model_id)

    def find(self, model_id: str) -> Resident | None:
        """The model of an id. `org/name` is of the default source; `scheme:org/name` is also found by it, unless two have it."""
        exact = self._by_id.get(model_id) or self._find_by_other_id(model_id)
        if exact is not None:
            return exact
        same = [r for r in self._by_id.values() if read_model_name(r.id).bare == model_id]
        return same[0] if len(same) == 1 else None

    def find_served(self, name: str) -> Resident | None:
        """The model that answers to a name: its own as `find` knows it, or that of one of its LoRA adapters.

        Of two models with an adapter of the same name neither does.
        """
        if (own := self.find(name)) is not None:
            return own
        having = [r for r in self._by_id.values() if name in (r.spec.lora or {})]
        return having[0] if len(having) == 1 else None

    def note_load(self, spec: ModelSpec, now_s: float) -> None:
        """Its load begins. If it has failed by its other id, that was it."""
        other = self._find_by_other_id(spec.model_id)
        if other is not None and other.status is ModelStatus.FAILED:
            del self._by_id[other.id]
        before = self._by_id.get(spec.model_id)
        status = next_status(before.status if before else None, Event.LOAD)
        if before is not None:  # the newest is the last
            del self._by_id[spec.model_id]
        if status is not None:
            self._by_id[spec.model_id] = Resident(
                spec=spec,
                status=status,
                began_s=now_s,
                phase=Phase(phase="checking"),
                failure=before.failure if before else None,
            )

    def note_place(self, model_id: str, devices: list[int], claims_mb: Mapping[int, int]) -> None:
        """Where it goes."""
        self._change(model_id, devices=devices, claims_mb=claims_mb)

    def note_phase(self, model_id: str, phase: Phase) -> None:
        """How far its load is."""
        self._change(model_id, phase=phase)

    def note_host(self, model_id: str, pid: int) -> None:
        """Its engine host was started."""
        self._change(model_id, pid=pid)

    def note_ready(self, model_id: str, ready: Ready, now_s: float, created: int) -> float:
        """Its engine serves. Returns the seconds that took."""
        took_s = now_s - self._by_id[model_id].began_s
        self.costs.note_load(model_id, took_s)
        self._move(model_id, Event.READY)
        self._change(model_id, ready=ready, created=created)
        return took_s

    def note_activity(self, model_id: str, activity: Activity) -> None:
        """What its engine says that it does."""
        self._change(model_id, activity=activity)

    def note_memory(self, model_id: str, *, vram_mb: int | None, host_ram_mb: int | None) -> None:
        """What it was measured to use. A model that has gone meanwhile is no fault."""
        if model_id in self._by_id:
            self._change(model_id, vram_used_mb=vram_mb, host_ram_used_mb=host_ram_mb)

    def note_failed(self, model_id: str, failure: Failure) -> None:
        """Its engine did not come up, or is gone."""
        self._move(model_id, Event.FAILED)
        self._change(
            model_id,
            failure=failure,
            pid=None,
            activity=Activity(),
            vram_used_mb=None,
            host_ram_used_mb=None,
            claims_mb={},
        )

    def forget_failed(self, ending: Collection[str]) -> None:
        """Keep no more failed models than may stay. Those whose engine is still `ending` stay until it has."""
        failed = [r.id for r in self._by_id.values() if r.status is ModelStatus.FAILED]
        for oldest in failed[:-MAX_FAILED]:
            if oldest not in ending:
                del self._by_id[oldest]

    def has_served(self, model_id: str) -> bool:
        """Whether its engine came up since it was loaded."""
        resident = self._by_id.get(model_id)
        return resident is not None and resident.ready is not None

    def is_asleep(self, model_id: str) -> bool:
        """Whether it sleeps, or is about to and has no requests any more."""
        resident = self._by_id.get(model_id)
        return resident is not None and resident.status is ModelStatus.SLEEPING and resident.drained

    def note_lost(self, model_id: str, failure: Failure, now_s: float) -> None:
        """Its engine is gone, and is started again."""
        self._move(model_id, Event.LOST)
        self._change(
            model_id,
            failure=failure,
            pid=None,
            activity=Activity(),
            vram_used_mb=None,
            host_ram_used_mb=None,
            claims_mb={},
            began_s=now_s,
            phase=Phase(phase="waiting"),
        )

    def note_slept(self, model_id: str, now_s: float) -> None:
        """It is to sleep; new requests are refused from now on."""
        self._move(model_id, Event.SLEPT)
        self._change(model_id, began_s=now_s, drained=False)

    def note_drained(self, model_id: str) -> None:
        """It is to sleep, and its requests have ended: from now on nobody misses its engine."""
        self._change(model_id, drained=True)

    def note_asleep(self, model_id: str) -> None:
        """It sleeps, and what it had of the devices is free for others."""
        self._change(model_id, claims_mb={})

    def note_woken(self, model_id: str, claims_mb: Mapping[int, int], now_s: float) -> None:
        """It is to serve again, and has its claims again."""
        self._move(model_id, Event.WOKEN)
        self._change(model_id, claims_mb=claims_mb, began_s=now_s, phase=Phase(phase="waking"))

    def note_awake(self, model_id: str) -> None:
        """It serves again."""
        self._move(model_id, Event.READY)

    def note_refused(self, model_id: str) -> None:
        """It cannot be loaded: it was never here."""
        self._move(model_id, Event.REFUSED)

    def note_unload(self, model_id: str) -> None:
        """It is to go; new requests are refused from now on."""
        self._move(model_id, Event.UNLOAD)

    def note_kept(self, model_id: str) -> None:
        """It was to go, and stays."""
        self._move(model_id, Event.KEPT)

    def note_gone(self, model_id: str) -> None:
        """Its engine has ended, as it was to."""
        self._move(model_id, Event.GONE)

    def state(self, resident: Resident, now_s: float) -> ModelState:
        """The entry of GET /models."""
        ready = resident.ready or Ready()
        loading = resident.status in (ModelStatus.LOADING, ModelStatus.RECOVERING)
        cost = self.costs.find(resident.id)
        return ModelState(
            id=resident.id,
            harness=resident.spec.harness,
            status=resident.status,
            devices=resident.devices,
            vram_used_mb=_vram_used_mb(resident),
            host_ram_used_mb=resident.host_ram_used_mb,
            capabilities=ready.capabilities,
            limits=ready.limits,
            can_sleep=ready.can_sleep,
            progress=self._progress(resident, now_s) if loading else None,
            last_error=resident.failure.reason if resident.failure else None,
            load_s=cost.load_s,
            wake_s=cost.wake_s,
            sleep_s=cost.sleep_s,
            unload_s=cost.unload_s,
            adapters=(resident.spec.lora or {}) if resident.ready else {},
        )

    def activity(self, resident: Resident) -> ModelActivity:
        """The entry of GET /health."""
        activity = resident.activity
        return ModelActivity(
            id=resident.id,
            status=resident.status,
            running=activity.running,
            waiting=activity.waiting,
            max_running=resident.ready.max_running if resident.ready else None,
            kv_usage_ratio=activity.kv_usage_ratio,
            prefill_tokens_per_s=activity.prefill_tokens_per_s,
            decode_tokens_per_s=activity.decode_tokens_per_s,
        )

    def _find_by_other_id(self, model_id: str) -> Resident | None:
        """The model of an id that was loaded by the same one with the default source's scheme, or without it."""
        name = read_model_name(model_id)
        if self._default_source is None or name.scheme not in (None, self._default_source):
            return None
        return self._by_id.get(name.bare if name.scheme else f"{self._default_source}:{name.bare}")

    def _progress(self, resident: Resident, now_s: float) -> Progress:
        last_s = self.costs.find(resident.id).load_s
        eta_s = None if last_s is None else max(0.0, last_s - (now_s - resident.began_s))
        phase = resident.phase
        # What the phase knows of itself is better than what the last load took.
        eta_s = eta_s if phase.eta_s is None else phase.eta_s
        return Progress(phase=phase.phase, ratio=phase.ratio, eta_s=eta_s)

    def _move(self, model_id: str, event: Event) -> None:
        before = self._by_id.get(model_id)
        status = next_status(before.status if before else None, event)
        if status is None:
            del self._by_id[model_id]
        else:
            self._change(model_id, status=status)

    def _change(self, model_id: str, **fields: object) -> None:
        self._by_id[model_id] = msgspec.structs.replace(self._by_id[model_id], **fields)


def _vram_used_mb(resident: Resident) -> int | None:
    """As measured; where the driver does not tell, what was set aside for it; None: neither is known."""
    if resident.vram_used_mb is not None:
        return resident.vram_used_mb
    return sum(resident.claims_mb.values()) if resident.claims_mb else None
