# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator declares in models.toml, and where each of it may run. Pure."""

from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property

import msgspec

from cortex_core.control import EngineSpec, ModelSpec
from cortex_core.discovery import Device, Discovery

# Of models that say nothing else, or that no catalogue names.
DEFAULT_PRIORITY = 100

# Of a model: what is counted, and makes no sense below 1.
_COUNTS = (
    "vram_mb", "min_devices", "min_device_vram_mb", "tensor_parallel", "max_model_len", "kv_cache_mb",
)  # fmt: skip


class MistakeError(ValueError):
    """A value in a file is wrong, or does not fit something else in it; the operator's fault.

    Attributes:
        path: keys that lead to what is wrong.
    """

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


class Model(EngineSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[models]]` entry: a model that clients may ask for. Takes every field of a spec as well.

    Attributes:
        id: what clients name.
        vram_mb: the whole model, split evenly over its devices; None: estimated from its files.
        min_devices: devices it needs; also the tensor-parallel size unless `tensor_parallel` is set.
        min_device_vram_mb: what each of them must have in total; None: no floor.
        pinned_on: nodes; it may run only there, and is never evicted there. Empty: anywhere.
        source: scheme of the source its weights come from; None: the neuron's default.
        priority: under the eviction strategy `priority` it displaces models of the same or a lower one only.
    """

    id: str
    vram_mb: int | None = None
    min_devices: int = 1
    min_device_vram_mb: int | None = None
    pinned_on: list[str] = []
    source: str | None = None
    priority: int = DEFAULT_PRIORITY

    def __post_init__(self) -> None:
        """Refuse what no engine could be asked. Raises MistakeError."""
        if not self.id.strip() or not self.id.isprintable():
            raise MistakeError(f"`id` is {self.id!r}, which names no model", "id")
        for key in _COUNTS:
            value = getattr(self, key)
            if value is not None and value < 1:
                raise MistakeError(f"`{key}` is {value}, and must be at least 1", key)
        if self.devices is not None:
            self._check_devices(self.devices)

    def _check_devices(self, devices: list[int | str]) -> None:
        twice = next((device for device in devices if devices.count(device) > 1), None)
        if twice is not None:
            raise MistakeError(f"`devices` has '{twice}' twice", "devices")
        if not devices:
            raise MistakeError("`devices` is empty; without it, the neuron chooses", "devices")
        if self._ranks not in (None, len(devices)):
            wrong = f"`devices` are {len(devices)}, and it is run on {self._ranks}, as its other keys say"
            raise MistakeError(wrong, "devices")

    @property
    def _ranks(self) -> int | None:
        """The tensor-parallel size that is asked for; None: none is."""
        if self.tensor_parallel is None and self.min_devices > 1:
            return self.min_devices
        return self.tensor_parallel

    @property
    def uses_devices(self) -> bool:
        """Whether it needs memory of a device. An echo engine needs none, and counts only as what it is said to."""
        return self.harness != "echo" or self.vram_mb is not None

    @property
    def loaded_id(self) -> str:
        """The id that a neuron loads it under."""
        return f"{self.source}:{self.id}" if self.source else self.id

    def spec(self) -> ModelSpec:
        """What a neuron is asked to load."""
        fields = {name: getattr(self, name) for name in EngineSpec.__struct_fields__}
        return ModelSpec(model_id=self.loaded_id, **fields | {"tensor_parallel": self._ranks})


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """The whole of models.toml.

    Attributes:
        models: what clients may ask for.
        aliases: further names, each of a model id; they never chain. A name with `*` is a pattern, for names that are
            otherwise unknown; of several that fit, the longest counts, and of equally long ones the first.
        fallbacks: model to those that serve in its place, in this order, where it can run nowhere or has failed. Each
            is an id or an alias of this file; those of a fallback are tried after it.
    """

    models: list[Model] = []
    aliases: dict[str, str] = {}
    fallbacks: dict[str, list[str]] = {}

    def __post_init__(self) -> None:
        """Refuse what two readers would understand differently. Raises ValueError; the operator's fault."""
        ids = [model.id for model in self.models]
        twice = next((model_id for model_id in ids if ids.count(model_id) > 1), None)
        if twice is not None:
            raise ValueError(f"`models` has two entries with the id '{twice}'; ids are unique")
        self._check_adapters(ids)
        self._check_aliases(ids)
        self._check_fallbacks(ids)

    def _check_adapters(self, ids: list[str]) -> None:
        for index, model in enumerate(self.models):
            for name in model.lora or {}:
                if name in ids:
                    wrong = f"`lora` has '{name}', which is the id of a model"
                    raise MistakeError(wrong, "models", index, "lora")

    def _check_aliases(self, ids: list[str]) -> None:
        for alias, target in self.aliases.items():
            if alias in ids:
                raise self._mistake(
                    alias, f"`aliases` has '{alias}', which is the id of a model too"
                )
            if target in self.aliases:
                wrong = f"the alias '{alias}' names '{target}', which is an alias itself"
                raise self._mistake(alias, wrong)
            if not alias.strip() or not target.strip():
                wrong = f"`aliases` has '{alias}' = '{target}'; neither may be empty"
                raise self._mistake(alias, wrong)
            if is_pattern(target):
                wrong = f"the alias '{alias}' names '{target}'; an alias names one model"
                raise self._mistake(alias, wrong)

    def _mistake(self, alias: str, wrong: str) -> MistakeError:
        return MistakeError(wrong, "aliases", alias)

    def _check_fallbacks(self, ids: list[str]) -> None:
        known = [*ids, *(alias for alias in self.aliases if not is_pattern(alias))]
        for model, names in self.fallbacks.items():
            for name in [model, *names]:
                if name not in known:
                    wrong = f"`fallbacks` has '{name}', which is neither a model nor an alias here"
                    raise MistakeError(f"{wrong}{_nearest(name, known)}", "fallbacks", model)
        resolved = [self.resolve(model) for model in self.fallbacks]
        for model in self.fallbacks:
            if resolved.count(self.resolve(model)) > 1:
                wrong = f"`fallbacks` has two entries for the model '{self.resolve(model)}'"
                raise MistakeError(wrong, "fallbacks", model)
            if circle := self._find_circle([self.resolve(model)], set()):
                wrong = f"`fallbacks` goes in a circle: {' -> '.join(circle)}"
                raise MistakeError(wrong, "fallbacks", model)

    def _find_circle(self, path: list[str], seen: set[str]) -> list[str] | None:
        """The way back to where the path began; None: there is none, whatever circles others are in.

        Nothing in `seen` is looked at again: several ways may lead to a model, and each layer of them doubles their number.
        """
        for name in self._next_of(path[-1]):
            if name == path[0]:
                return [*path, name]
            if name in seen:
                continue
            seen.add(name)
            if found := self._find_circle([*path, name], seen):
                return found
        return None

    def _next_of(self, model_id: str) -> list[str]:
        """The fallbacks of one model, its own alone."""
        return self._fallbacks.get(model_id, [])

    @cached_property
    def _fallbacks(self) -> dict[str, list[str]]:
        """Ids to ids."""
        return {
            self.resolve(model): [self.resolve(name) for name in names]
            for model, names in self.fallbacks.items()
        }

    def fallbacks_of(self, model_id: str) -> list[str]:
        """Who serves in a model's place, in their order, each once; those of a fallback come after it."""
        found: dict[str, None] = {}
        self._walk(model_id, found)
        return list(found)

    def _walk(self, model_id: str, found: dict[str, None]) -> None:
        for name in self._next_of(model_id):
            if name not in found:
                found[name] = None
                self._walk(name, found)

    def resolve(self, name: str) -> str:
        """The concrete id that a client's name means, patterns aside."""
        return self.aliases.get(name, name)

    def match(self, name: str) -> str | None:
        """The id that the patterns give to a name that nobody knows; None: none of them fits."""
        fitting = [alias for alias in self.aliases if is_pattern(alias) and _fits(alias, name)]
        return self.aliases[max(fitting, key=len)] if fitting else None

    def with_default(self, model: str | None) -> "Catalogue":
        """The same, where every other name means `model`, an id or an alias; None: as it is."""
        if model is None:
            return self
        return msgspec.structs.replace(self, aliases={"*": self.resolve(model), **self.aliases})

    def find(self, model_id: str) -> Model | None:
        """The entry of a concrete id; None: not declared."""
        return self._by_id.get(model_id)

    def find_loaded(self, model_id: str) -> Model | None:
        """The entry of a model that is resident under an id, with or without its source; None: not declared."""
        return self._by_id.get(model_id) or self._by_sourced_id.get(model_id)

    @cached_property
    def _by_id(self) -> dict[str, Model]:
        return {model.id: model for model in self.models}

    @cached_property
    def _by_sourced_id(self) -> dict[str, Model]:
        return {model.loaded_id: model for model in self.models if model.source}


def is_pattern(name: str) -> bool:
    """Whether a name of the aliases stands for several: `*` is for any characters, or none."""
    return "*" in name


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; the nearest is '{close[0]}'" if close else ""


def _fits(pattern: str, name: str) -> bool:
    # Only `*` means more than itself: ids may hold brackets.
    return fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]"))


def infeasible_reason(model: Model, node: str, found: Discovery) -> str | None:
    """Why the model can never run on a node; None: it can.

    Total memory only: what is free now is placement's question.
    """
    if model.pinned_on and node not in model.pinned_on:
        return f"pinned on {', '.join(model.pinned_on)}"
    if model.harness not in found.harnesses:
        return (
            f"harness '{model.harness}' is not there, only {', '.join(found.harnesses) or 'none'}"
        )
    if not model.uses_devices:
        return None
    return _too_small(model, found.devices)


def _too_small(model: Model, devices: list[Device]) -> str | None:
    floor_mb = model.min_device_vram_mb
    if floor_mb is None:
        floor_mb = -(-model.vram_mb // model.min_devices) if model.vram_mb else 0
    enough = [device for device in devices if device.vram_total_mb >= floor_mb]
    if len(enough) >= model.min_devices:
        return None
    sizes = ", ".join(f"{device.vram_total_mb} MiB" for device in devices) or "no devices"
    return f"needs {model.min_devices} device(s) of {floor_mb} MiB, has {sizes}"
