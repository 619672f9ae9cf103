# SPDX-License-Identifier: GPL-3.0-or-later
"""What a neuron finds on its machine: the answer of GET /discovery. Pure."""

import msgspec


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device that models can be placed on.

    Attributes:
        index: as the driver counts them; what a spec's `devices` names. Of a MIG instance: 100, ten times its
            GPU's, and its own.
        uuid: the driver's; stable over restarts. `cpu` for the CPU device.
        name: the driver's.
        vram_total_mb: MiB. For the CPU device: its configured budget of weights and KV cache.
        compute_capability: such as `8.9`; None: not a CUDA device.
    """

    index: int
    uuid: str
    name: str
    vram_total_mb: int
    compute_capability: str | None = None


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    """One machine, as its neuron found it at start.

    Attributes:
        cuda_version, driver_version: None: no NVIDIA driver, which is not an error.
        cuda_unavailable_reason: why a driver that is there cannot be used; None: nothing is wrong.
        harnesses: kinds of engine that can be loaded here.
        host_ram_mb: MiB in the machine.
        version: of the neuron package.
        wire: the neuron's WIRE_VERSION.
        instance: as in Health.
    """

    hostname: str
    os: str
    kernel: str
    cuda_version: str | None = None
    driver_version: str | None = None
    cuda_unavailable_reason: str | None = None
    devices: list[Device] = []
    harnesses: list[str] = []
    host_ram_mb: int = 0
    version: str = "unknown"
    wire: int = 1
    instance: str | None = None
