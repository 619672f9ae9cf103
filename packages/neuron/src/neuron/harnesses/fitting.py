# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a vLLM engine fits on this machine, and where: by what was measured here before, else by its files."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from cortex_core import logs
from cortex_core.control import DevicePlan, ModelSpec, PlanAnswer
from cortex_core.errors import LoadFailedError, LoadRefusedError
from cortex_core.node import ModelStatus
from neuron.config import VllmSettings
from neuron.harnesses.estimating import (
    Asked,
    Estimate,
    estimate,
    least_cache_mb,
    read_asked,
)
from neuron.harnesses.figures import Figures
from neuron.harnesses.making_room import weigh, who_would_go
from neuron.harnesses.placing import Placement, Share, check_ranks, deals
from neuron.harnesses.ranks import Ranks, choose_ranks
from neuron.harnesses.run import Shared
from neuron.harnesses.shortages import check_cache, shortage
from neuron.residents import Resident
from neuron.room import RISING, Holder, Room, held_mb

log = logs.get(__name__)


class Wanted(NamedTuple):
    """A spec, and what is known of the model's size: its figures, else what somebody says, else what was measured.

    `lora_rank` is the highest of its adapters; 0: it has none, or it is not known.
    """

    spec: ModelSpec
    figures: Figures | None
    vram_mb: int | None = None
    lora_rank: int = 0


class Fitting:
    """Finds room for vLLM engines. All of it answers from memory: who wants today's figures measures before."""

    def __init__(self, settings: VllmSettings, shared: Shared) -> None:
        self._settings = settings
        self._shared = shared

    def place(self, spec: ModelSpec, figures: Figures, lora_rank: int = 0) -> Placement:
        """Where an engine for the spec goes.

        The memory is not held by this: whoever asks notes the claims before he waits for anything.

        Raises:
            LoadRefusedError: `tp_infeasible`, `insufficient_vram`, `multi_host_unsupported`, `invalid_spec`.
            LoadFailedError: no GPU of this machine can be used.
        """
        wanted = Wanted(spec, figures, lora_rank=lora_rank)
        asked, placement, would_go = self._weigh(wanted)
        if not placement.fits:
            raise self._shortage(wanted, asked, placement, would_go)
        self._shared.costs.note_cache(spec.model_id, placement.cache.kv_cache_mb)
        log.info(
            "model placed",
            model=spec.model_id,
            devices=[share.index for share in placement.shares],
            needed_mb=[share.needed_mb for share in placement.shares],
            free_mb=[share.free_mb for share in placement.shares],
            kv_cache_mb=placement.cache.kv_cache_mb,
            kv_bytes_per_token=placement.needs.kv_bytes_per_token,
            max_model_len=placement.cache.max_model_len,
            source=placement.needs.source,
        )
        return placement

    def knows(self, spec: ModelSpec) -> bool:
        """Whether just this spec was measured here, so that its size is known without its files."""
        ranks = self._shared.costs.ranks(spec)
        return ranks is not None and spec.tensor_parallel in (None, ranks)

    def plan(
        self,
        spec: ModelSpec,
        figures: Figures | None,
        vram_mb: int | None = None,
        lora_rank: int = 0,
    ) -> PlanAnswer:
        """The answer of POST /models/plan.

        Args:
            spec: what would be loaded.
            figures: None: its files are not here; then `vram_mb` is there, or `knows(spec)`.
            vram_mb: MiB that it is said to need.
            lora_rank: as in Wanted.

        Raises:
            LoadRefusedError, LoadFailedError: it can never be loaded here as asked, wherever it would go.
        """
        wanted = Wanted(spec, figures, vram_mb, lora_rank)
        asked, placement, would_go = self._weigh(wanted)
        if placement.fits:
            return _answer(spec, placement, [])
        refusal = self._shortage(wanted, asked, placement, would_go)
        is_never = any(share.is_too_large for share in placement.shares)
        return msgspec.structs.replace(
            _answer(spec, placement, would_go or []),
            kind=str(refusal.facts["load_kind"]) if is_never else None,
            reason=str(refusal.facts["reason"]),
            suggestion=str(refusal.facts["suggestion"]),
        )

    def plan_resident(self, resident: Resident) -> PlanAnswer | None:
        """The answer for a model that is here already; None: it is going, or has failed."""
        if resident.status in (ModelStatus.LOADED, *RISING):
            return PlanAnswer(model_id=resident.id, fits=True, already=True)
        run = self._shared.runs.get(resident.id)
        if resident.status is not ModelStatus.SLEEPING or run is None or run.launch is None:
            return None
        claims_mb = run.launch.claims_mb
        measuring = self._shared.measuring
        missing_mb = measuring.lacking_mb(resident.id, claims_mb)
        going = who_would_go(missing_mb, self._holders(resident.id)) if missing_mb else []
        return PlanAnswer(
            model_id=resident.id,
            fits=not missing_mb,
            already=True,
            source="measured",
            devices=[
                DevicePlan(
                    index=room.device.index,
                    needed_mb=claims_mb[room.device.index],
                    free_mb=room.free_mb,
                    total_mb=room.total_mb,
                    short_mb=missing_mb.get(room.device.index, 0),
                )
                for room in measuring.rooms(without=resident.id)
                if room.device.index in claims_mb
            ],
            would_evict=[holder.model_id for holder in going],
            busy=[holder.model_id for holder in going if holder.is_busy],
            reason=f"it sleeps, and to wake it lacks {missing_mb} MiB by device"
            if missing_mb
            else None,
        )

    def _weigh(self, wanted: Wanted) -> tuple[Asked, Placement, list[Holder] | None]:
        ranks, rooms = self._choose_ranks(wanted, self._rooms(wanted.spec))
        spec = msgspec.structs.replace(wanted.spec, tensor_parallel=ranks)
        if wanted.figures is not None:
            check_ranks(spec, wanted.figures)
        needs, asked = self._needs(wanted._replace(spec=spec))
        weighed = weigh(spec, needs, asked, rooms, self._holders(spec.model_id))
        check_cache(spec, weighed.placement, asked)
        return asked, *weighed

    def _choose_ranks(self, wanted: Wanted, there: Sequence[Room]) -> Ranks:
        def least_mb(ranks: int) -> int:
            needs, asked = self._needs_with(wanted, ranks)
            modest = msgspec.structs.replace(asked, max_model_len=None)
            return needs.fixed_mb + least_cache_mb(needs, modest)

        if wanted.figures is None and wanted.vram_mb is None and wanted.spec.devices is None:
            measured = self._shared.costs.ranks(wanted.spec)
            return Ranks(wanted.spec.tensor_parallel or measured or 1, there)
        return choose_ranks(wanted.spec, there, least_mb, lambda n: _can_deal(wanted, n))

    def _rooms(self, spec: ModelSpec) -> list[Room]:
        found = self._shared.found
        if not found.devices:
            why = found.cuda_unavailable_reason or "`platform` is cuda, and there is no NVIDIA GPU"
            raise LoadFailedError(
                model=spec.model_id,
                node=found.hostname,
                load_kind="cuda_unavailable",
                reason=f"no GPU can be used: {why}.",
            )
        return self._shared.measuring.rooms(without=spec.model_id)

    def _needs(self, wanted: Wanted) -> tuple[Estimate, Asked]:
        """What a rank needs: as measured here for just this spec, else by its files, else as given.

        The CPU's budget counts what engines were given, so nothing that was measured replaces it.
        """
        spec, figures, vram_mb, _ = wanted
        asked = read_asked(
            spec,
            platform=self._shared.platform,
            kv_cache_mb=self._settings.kv_cache_mb,
            longest=self._settings.max_model_len,
            lora_rank=wanted.lora_rank,
        )
        measured_mb = None
        if self._shared.platform == "cuda":
            measured_mb = self._shared.costs.fixed_mb(spec)
        if figures is not None:
            needs = estimate(figures, asked)
            if measured_mb is not None:
                needs = msgspec.structs.replace(needs, fixed_mb=measured_mb, source="measured")
            return needs, asked
        if measured_mb is not None:
            had_mb = self._shared.costs.find(spec.model_id).kv_cache_mb
            needs = Estimate(fixed_mb=measured_mb, source="measured")
            return needs, msgspec.structs.replace(asked, kv_cache_mb=asked.kv_cache_mb or had_mb)
        # What is said of the whole model has its cache in it.
        needs = Estimate(fixed_mb=math.ceil((vram_mb or 0) / asked.ranks), source="given")
        return needs, msgspec.structs.replace(asked, kv_cache_mb=0)

    def _holders(self, without: str) -> list[Holder]:
        return [self._holder(r) for r in self._shared.residents.all() if r.id != without]

    def _holder(self, resident: Resident) -> Holder:
        link = self._shared.traffic.find(resident.id)
        works = link is not None and (link.admission.running or link.admission.waiting)
        return Holder(
            model_id=resident.id,
            held_mb=held_mb(resident, self._shared.measuring.used_mb(resident.id)),
            is_busy=bool(works) or resident.status in RISING,
            used_s=link.used_s if link else resident.began_s,
        )

    def _shortage(
        self,
        wanted: Wanted,
        asked: Asked,
        placement: Placement,
        would_go: list[Holder] | None,
    ) -> LoadRefusedError:
        return shortage(
            wanted.spec,
            placement,
            asked,
            self._shared.measuring.rooms(without=wanted.spec.model_id),
            lambda ranks: self._needs_with(wanted, ranks)[0],
            lambda ranks: _can_deal(wanted, ranks),
            [holder.model_id for holder in would_go or []],
        )

    def _needs_with(self, wanted: Wanted, ranks: int) -> tuple[Estimate, Asked]:
        spec = msgspec.structs.replace(wanted.spec, tensor_parallel=ranks)
        return self._needs(wanted._replace(spec=spec))


def _can_deal(wanted: Wanted, ranks: int) -> bool:
    return wanted.figures is None or deals(ranks, wanted.figures)


def _answer(spec: ModelSpec, placement: Placement, would_go: list[Holder]) -> PlanAnswer:
    max_model_len = placement.cache.max_model_len
    return PlanAnswer(
        model_id=spec.model_id,
        fits=placement.fits,
        source=placement.needs.source,
        devices=[_device_plan(share) for share in placement.shares],
        kv_cache_mb=placement.cache.kv_cache_mb or None,
        max_model_len=max_model_len if max_model_len and max_model_len > 0 else None,
        would_evict=[holder.model_id for holder in would_go],
        busy=[holder.model_id for holder in would_go if holder.is_busy],
    )


def _device_plan(share: Share) -> DevicePlan:
    return DevicePlan(
        index=share.index,
        needed_mb=share.needed_mb,
        free_mb=share.free_mb,
        total_mb=share.total_mb,
        short_mb=share.short_mb,
    )
