# SPDX-License-Identifier: GPL-3.0-or-later
"""What did each model cost on this machine: time and memory, as measured? The one owner of that. Pure.

It is told, and asked; `remembering` keeps it on disk.
"""

from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from cortex_core.control import ModelSpec

# Ids come from clients, so there is a bound. The one that was told of least recently goes.
MAX_MODELS = 256
# Fields of a spec that change what an engine takes of a device beside its KV cache.
MATTERS = ("harness", "quant", "dtype", "lora", "engine_args")
# A process that grows by less has not grown: what is on disk is not written anew for it.
NOTICED_MB = 16


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one model cost, when that was last done. None, or empty: it was never measured.

    Attributes:
        spec: what was measured in MiB, with the fields that matter alone.
        kv_cache_mb: MiB of KV cache that each of its ranks had then.
        load_s, wake_s, sleep_s, unload_s: seconds.
        vram_mb: the most that its processes had of each device while it served, by index.
        host_ram_mb: the most of host memory.
    """

    spec: ModelSpec | None = None
    kv_cache_mb: int | None = None
    load_s: float | None = None
    wake_s: float | None = None
    sleep_s: float | None = None
    unload_s: float | None = None
    vram_mb: dict[int, int] = {}
    host_ram_mb: int | None = None


class Costs:
    """The costs of models, by the id they were loaded under.

    Attributes:
        revision: goes up with each change.
        cycles: finished unloads and wakes since a model was last reloaded.
    """

    def __init__(self, known: Mapping[str, Cost] | None = None, cycles: int = 0) -> None:
        self._by_id = OrderedDict(known or {})
        self.cycles = cycles
        # MiB of KV cache that an engine was or is to be given.
        self._caches_mb: dict[str, int] = {}
        self.revision = 0

    def all(self) -> dict[str, Cost]:
        """Every model that was ever measured, the one told of least recently first."""
        return dict(self._by_id)

    def find(self, model_id: str) -> Cost:
        """What a model cost; nothing but None where it was never measured."""
        return self._by_id.get(model_id, Cost())

    def fixed_mb(self, spec: ModelSpec) -> int | None:
        """MiB of a device that a rank of just this spec took beside its KV cache; None: never measured with as many ranks."""
        cost = self.find(spec.model_id)
        if self.ranks(spec) != (spec.tensor_parallel or 1) or cost.kv_cache_mb is None:
            return None
        return max(0, max(cost.vram_mb.values()) - cost.kv_cache_mb)

    def ranks(self, spec: ModelSpec) -> int | None:
        """How many ranks just this spec had when it was measured, each on a device of its own; None: it never was."""
        cost = self.find(spec.model_id)
        return len(cost.vram_mb) if cost.vram_mb and cost.spec == _core(spec) else None

    def note_load(self, model_id: str, took_s: float) -> None:
        """It came up."""
        self._change(model_id, load_s=took_s)

    def note_wake(self, model_id: str, took_s: float) -> None:
        """It serves again."""
        self.cycles += 1
        self._change(model_id, wake_s=took_s)

    def note_sleep(self, model_id: str, took_s: float) -> None:
        """It sleeps."""
        self._change(model_id, sleep_s=took_s)

    def note_unload(self, model_id: str, took_s: float) -> None:
        """It is gone; draining is not counted, which is its clients' time."""
        self.cycles += 1
        self._change(model_id, unload_s=took_s)

    def note_reload(self) -> None:
        """A model is being reloaded: the count of cycles starts again."""
        self.cycles = 0
        self.revision += 1

    def note_cache(self, model_id: str, kv_cache_mb: int) -> None:
        """The MiB of KV cache that each rank of its next engine is given."""
        self._caches_mb[model_id] = kv_cache_mb

    def note_memory(
        self, spec: ModelSpec, vram_mb: Mapping[int, int], host_ram_mb: int | None
    ) -> None:
        """What its processes have of the devices and of host memory, while it serves."""
        spec = _core(spec)
        before = self.find(spec.model_id)
        kv_cache_mb = self._caches_mb.get(spec.model_id)
        moved = vram_mb and vram_mb.keys() != before.vram_mb.keys()
        if before.spec != spec or before.kv_cache_mb != kv_cache_mb or moved:
            self._change(
                spec.model_id,
                spec=spec,
                kv_cache_mb=kv_cache_mb,
                vram_mb=dict(vram_mb),
                host_ram_mb=host_ram_mb,
            )
            return
        most = {
            index: max(had_mb, vram_mb.get(index, 0)) for index, had_mb in before.vram_mb.items()
        }
        most_ram_mb = max(before.host_ram_mb or 0, host_ram_mb or 0)
        grown = [*most.values(), most_ram_mb]
        had = [*(before.vram_mb.get(index, 0) for index in most), before.host_ram_mb or 0]
        if any(new - old >= NOTICED_MB for new, old in zip(grown, had, strict=True)):
            self._change(spec.model_id, vram_mb=most, host_ram_mb=most_ram_mb)

    def _change(self, model_id: str, **fields: object) -> None:
        self._by_id[model_id] = msgspec.structs.replace(self.find(model_id), **fields)
        self._by_id.move_to_end(model_id)
        while len(self._by_id) > MAX_MODELS:
            oldest, _ = self._by_id.popitem(last=False)
            self._caches_mb.pop(oldest, None)
        self.revision += 1


def _core(spec: ModelSpec) -> ModelSpec:
    return ModelSpec(model_id=spec.model_id, **{name: getattr(spec, name) for name in MATTERS})
