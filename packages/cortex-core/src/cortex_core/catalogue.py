# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator declares in models.toml, and where each of it may run. Pure."""

import msgspec

from cortex_core.control import EngineSpec, ModelSpec
from cortex_core.discovery import Device, Discovery


class Model(EngineSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[models]]` entry: a model that clients may ask for. Takes every field of a spec as well.

    Attributes:
        id: what clients name.
        vram_mb: the whole model, split evenly over its devices; None: estimated from its files.
        min_devices: devices it needs; also the tensor-parallel size unless `tensor_parallel` is set.
        min_device_vram_mb: what each of them must have in total; None: no floor.
        pinned_on: nodes; it may run only there, and is never evicted there. Empty: anywhere.
        source: scheme of the source its weights come from; None: the neuron's default.
    """

    id: str
    vram_mb: int | None = None
    min_devices: int = 1
    min_device_vram_mb: int | None = None
    pinned_on: list[str] = []
    source: str | None = None

    def spec(self) -> ModelSpec:
        """What a neuron is asked to load."""
        fields = {name: getattr(self, name) for name in EngineSpec.__struct_fields__}
        if fields["tensor_parallel"] is None and self.min_devices > 1:
            fields["tensor_parallel"] = self.min_devices
        return ModelSpec(model_id=f"{self.source}:{self.id}" if self.source else self.id, **fields)


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of models.toml.

    Attributes:
        models: what clients may ask for.
        aliases: further names, each of a model id; they never chain.
    """

    models: list[Model] = []
    aliases: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Refuse what two readers would understand differently. Raises ValueError; the operator's fault."""
        ids = [model.id for model in self.models]
        twice = next((model_id for model_id in ids if ids.count(model_id) > 1), None)
        if twice is not None:
            raise ValueError(f"`models` has two entries with the id '{twice}'; ids are unique")
        for alias, target in self.aliases.items():
            if alias in ids:
                raise ValueError(f"`aliases` has '{alias}', which is the id of a model too")
            if target in self.aliases:
                raise ValueError(f"the alias '{alias}' names '{target}', which is an alias itself")

    def resolve(self, name: str) -> str:
        """The concrete id that a client's name means."""
        return self.aliases.get(name, name)

    def find(self, model_id: str) -> Model | None:
        """The entry of a concrete id; None: not declared."""
        return next((model for model in self.models if model.id == model_id), None)


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
    if model.harness == "echo":  # an echo engine uses no device
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
