# SPDX-License-Identifier: GPL-3.0-or-later
"""Which devices an engine gets, and how much of each it claims. Pure."""

from collections.abc import Mapping

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device, Discovery
from cortex_core.errors import LoadRefusedError

# What weights take beyond their files, and a CUDA process beside weights and KV cache: context, graphs, workspace.
WEIGHTS_FACTOR = 1.05
CUDA_OVERHEAD_MB = 2048
HIGHEST_SHARE = 0.97


def choose_devices(
    spec: ModelSpec, found: Discovery, free_mb: Mapping[int, int | None]
) -> list[Device]:
    """The devices that the spec names, else those with the most free memory.

    On the CPU all ranks share the one device.

    Raises:
        LoadRefusedError: `tp_infeasible`: there are too few. `invalid_spec`: one is not there.
            `insufficient_vram`: there is none at all.
    """
    ranks = spec.tensor_parallel or 1
    devices = found.devices
    if not devices:
        why = found.cuda_unavailable_reason or "there is no GPU"
        raise _refused(
            spec,
            "insufficient_vram",
            f"this machine has no device to run it on: {why}",
            "Repair the driver, or set `platform` to cpu in [harness.vllm].",
        )
    if spec.devices is not None:
        chosen = [_find(spec, wanted, devices) for wanted in spec.devices]
    elif is_cpu(devices):
        chosen = devices
    else:
        by_room = sorted(devices, key=lambda device: -(free_mb.get(device.index) or 0))
        chosen = sorted(by_room[:ranks], key=lambda device: device.index)
    if len(chosen) != ranks and not is_cpu(devices):
        raise _refused(
            spec,
            "tp_infeasible",
            f"tensor_parallel is {ranks}, and it would have {len(chosen)} device(s) of {len(devices)}",
            f"Set tensor_parallel to {len(chosen)}.",
        )
    return chosen


def is_cpu(devices: list[Device]) -> bool:
    """Whether the device is the CPU."""
    return [device.uuid for device in devices] == ["cpu"]


def claim_ratio(devices: list[Device], weights_mb: int, kv_cache_mb: int) -> float:
    """The engine's claim over the memory of its smallest device, which vLLM checks against what is free."""
    claim_mb = weights_mb / len(devices) * WEIGHTS_FACTOR + kv_cache_mb + CUDA_OVERHEAD_MB
    total_mb = max(1, min(device.vram_total_mb for device in devices))
    return round(min(HIGHEST_SHARE, claim_mb / total_mb), 4)


def _find(spec: ModelSpec, wanted: int | str, devices: list[Device]) -> Device:
    for device in devices:
        if wanted in (device.index, str(device.index), device.uuid):
            return device
    known = ", ".join(f"{device.index} ({device.uuid})" for device in devices)
    raise _refused(spec, "invalid_spec", f"there is no device {wanted}", f"There are: {known}.")


def _refused(spec: ModelSpec, kind: str, reason: str, suggestion: str) -> LoadRefusedError:
    return LoadRefusedError(
        model=spec.model_id, load_kind=kind, reason=reason, suggestion=suggestion
    )
