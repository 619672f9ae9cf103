# SPDX-License-Identifier: GPL-3.0-or-later
"""What is peculiar to vLLM engines: the model's files, their devices, the settings and variables of the process."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from cortex_core.control import ModelSpec
from cortex_core.discovery import Device
from cortex_core.errors import LoadRefusedError
from neuron.config import Config
from neuron.discovery import CPU_INDEX
from neuron.harnesses.hosted import Hosted
from neuron.harnesses.model_files import ModelFiles, weights_mb
from neuron.harnesses.placing import choose_devices, claim_ratio
from neuron.harnesses.run import Launch, Shared
from neuron.host.engine import StartFailedError
from neuron.host.engines.vllm_files import check_files
from neuron.host.engines.vllm_options import check_engine_args

# Of KV cache, where neither spec nor neuron.toml says. The CPU engine touches all of it when it comes up.
DEFAULT_KV_CACHE_MB = {"cpu": 256, "cuda": 4096}


class VllmHarness(Hosted):
    """Engines that run models on vLLM."""

    name = "vllm"

    def __init__(self, config: Config, shared: Shared) -> None:
        super().__init__(shared)
        self._settings = config.harness.vllm
        own_paths = {spec.model_id for spec in config.default_models if _is_path(spec.model_id)}
        self._files = ModelFiles(self._settings, own_paths, os.environ)

    async def plan_launch(self, spec: ModelSpec) -> Launch:
        folder, weights = await asyncio.to_thread(self._check, spec)
        free_mb = {d.index: d.vram_free_mb for d in self._shared.measuring.devices()}
        devices = choose_devices(spec, self._shared.found, free_mb)
        kv_cache_mb = spec.kv_cache_mb or self._kv_cache_mb
        on_cpu = self._shared.platform == "cpu"
        claim_mb = weights + kv_cache_mb * (spec.tensor_parallel or 1)
        return Launch(
            python=self._settings.python or sys.executable,
            environ=plan_environment(self._shared.platform, devices),
            settings=self._engine_settings(devices, weights, kv_cache_mb),
            model_path=str(folder),
            devices=[device.index for device in devices],
            claims_mb={CPU_INDEX: claim_mb} if on_cpu else {},
            start_timeout_s=self._settings.start_timeout_s,
            stop_timeout_s=self._settings.stop_timeout_s,
        )

    @property
    def _kv_cache_mb(self) -> int:
        return self._settings.kv_cache_mb or DEFAULT_KV_CACHE_MB[self._shared.platform]

    def _check(self, spec: ModelSpec) -> tuple[Path, int]:
        """Where its files are and how many MiB of weights; what a look at them tells is told here."""
        try:
            check_engine_args(spec.engine_args or {})
            folder = self._files.locate(spec)
            check_files(folder)
        except StartFailedError as error:
            raise LoadRefusedError(
                model=spec.model_id,
                load_kind=error.kind,
                reason=str(error).rstrip("."),
                suggestion=error.suggestion,
            ) from None
        return folder, weights_mb(folder, spec.model_id)

    def _engine_settings(
        self, devices: list[Device], weights: int, kv_cache_mb: int
    ) -> dict[str, Any]:
        on_cpu = self._shared.platform == "cpu"
        return {
            "platform": self._shared.platform,
            "kv_cache_mb": self._kv_cache_mb,
            "max_model_len": self._settings.max_model_len,
            "gpu_memory_utilization": None
            if on_cpu
            else claim_ratio(devices, weights, kv_cache_mb),
        }


def plan_environment(platform: str, devices: list[Device]) -> dict[str, str | None]:
    """Variables that must be there before the interpreter runs. The engine sets its own beside them."""
    environ: dict[str, str | None] = {
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Legacy, in GiB, and it would override the cache size that is set.
        "VLLM_CPU_KVCACHE_SPACE": None,
    }
    if platform == "cuda":
        # CUDA counts the fastest first unless told to count as the driver does.
        environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(device.index) for device in devices)
    return environ


def _is_path(model_id: str) -> bool:
    return model_id.startswith("/")
