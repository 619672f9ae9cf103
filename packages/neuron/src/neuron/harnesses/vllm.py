# SPDX-License-Identifier: GPL-3.0-or-later
"""What is peculiar to vLLM engines: the model's files, their devices, the settings and variables of the process."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cortex_core.control import ModelSpec, PlanAnswer
from cortex_core.discovery import Device
from cortex_core.errors import LoadFailedError, LoadRefusedError
from cortex_core.weights import DownloadProgress
from neuron.config import Config
from neuron.discovery import is_mig
from neuron.harnesses.failures import refused_plan
from neuron.harnesses.figures import Figures
from neuron.harnesses.fitting import Fitting
from neuron.harnesses.gguf import find_gguf, reads_gguf
from neuron.harnesses.hosted import Hosted
from neuron.harnesses.model_figures import read_model
from neuron.harnesses.model_files import weights_mb
from neuron.harnesses.placing import Placement, memory_share, refused
from neuron.harnesses.run import Launch, Shared
from neuron.harnesses.spares import Recipe
from neuron.harnesses.specs import check_spec
from neuron.host.engine import StartFailedError
from neuron.host.engines.vllm_adapters import check_adapters
from neuron.host.engines.vllm_files import check_files
from neuron.host.engines.vllm_options import check_engine_args
from neuron.host.messages import Phase, Preload
from neuron.weights.downloads import Report

T = TypeVar("T")

# Of a source, before who asked for a load without waiting is told that it is on its way. A gateway waits 5 s.
FIRST_ANSWER_S = 2.0
# An engine is lost that is silent for as long, where neuron.toml does not say. On a CPU one step may read a whole prompt.
HEARTBEAT_S = {"cpu": 600.0, "cuda": 60.0}


class VllmHarness(Hosted):
    """Engines that run models on vLLM."""

    name = "vllm"

    def __init__(self, config: Config, shared: Shared) -> None:
        super().__init__(shared)
        self._settings = config.harness.vllm
        self._fitting = Fitting(self._settings, shared)
        self._first_answer_s = FIRST_ANSWER_S

    async def plan_launch(self, spec: ModelSpec) -> Launch:
        _as_refused(spec, lambda: check_engine_args(spec.engine_args or {}))
        report = partial(self._note_download, spec.model_id)
        can_read = await self._reads_gguf()
        folder = await self._shared.weights.ensure(spec, report, with_gguf=can_read)
        gguf = await asyncio.to_thread(find_gguf, spec, folder, can_read=can_read)
        adapters, lora_rank = await self._find_adapters(spec, folder, report)
        figures = await asyncio.to_thread(_check, spec, folder, gguf)
        await self._shared.measuring.measure()
        # From here until the residents know of the claims nothing may wait: another load could take the same room.
        placement = self._fitting.place(spec, figures, lora_rank)
        return Launch(
            python=self._python,
            environ=plan_environment(self._shared.platform, self._cache_dir, placement.devices),
            settings={**self._engine_settings(placement), "lora": adapters, **_name(gguf)},
            model_path=str(folder),
            devices=[device.index for device in placement.devices],
            claims_mb=placement.claims_mb,
            start_timeout_s=self._settings.start_timeout_s,
            stop_timeout_s=self._settings.stop_timeout_s,
            heartbeat_timeout_s=self._heartbeat_timeout_s,
            weights_mb=placement.needs.weights_mb * placement.ranks,
            ranks=placement.ranks,
            spare=self._spare,
        )

    async def plan_count(self, spec: ModelSpec) -> Launch:
        _as_refused(spec, lambda: check_engine_args(spec.engine_args or {}))
        folder, gguf = await self._locate(spec)
        return Launch(
            python=self._python,
            environ=plan_import_environment(self._shared.platform, self._cache_dir),
            settings={
                "platform": self._shared.platform,
                "allowed_media_domains": self._settings.allowed_media_domains,
                **_name(gguf),
            },
            model_path=str(folder),
            start_timeout_s=self._settings.start_timeout_s,
            stop_timeout_s=self._settings.stop_timeout_s,
            heartbeat_timeout_s=self._heartbeat_timeout_s,
            spare=self._spare,
        )

    async def _find_adapters(
        self, spec: ModelSpec, folder: Path, report: Report
    ) -> tuple[dict[str, str], int]:
        """Where the files of its LoRA adapters are, and their highest rank; what a look at them tells is told here."""
        found = {}
        for name, repo in (spec.lora or {}).items():
            with _told_of_adapter(spec, name):
                found[name] = str(
                    await self._shared.weights.ensure(ModelSpec(model_id=repo), report)
                )
        return found, await self._highest_rank(spec, folder, found)

    async def _look_at_adapters(self, spec: ModelSpec) -> int:
        """Their highest rank; 0: there are none, or their files are not here."""
        found = {}
        try:
            folder = await self._shared.weights.locate(spec)
            for name, repo in (spec.lora or {}).items():
                with _told_of_adapter(spec, name):
                    found[name] = str(await self._shared.weights.locate(ModelSpec(model_id=repo)))
        except LoadRefusedError as error:
            if error.facts["load_kind"] != "repo_fetch_failed":
                raise
            return 0  # a load would fetch them
        return await self._highest_rank(spec, folder, found)

    async def _highest_rank(self, spec: ModelSpec, folder: Path, adapters: dict[str, str]) -> int:
        look = partial(check_adapters, adapters, spec.model_id, folder)
        return await asyncio.to_thread(_as_refused, spec, look)

    async def plan(self, spec: ModelSpec, *, vram_mb: int | None = None) -> PlanAnswer:
        try:
            check_spec(spec)
            figures = await self._look(spec, vram_mb)
            lora_rank = await self._look_at_adapters(spec) if spec.lora else 0
            await self._shared.measuring.measure()
            there = self._plan_resident(spec)
            return there or self._fitting.plan(spec, figures, vram_mb, lora_rank)
        except (LoadRefusedError, LoadFailedError) as error:
            return refused_plan(spec, error)

    def _plan_resident(self, spec: ModelSpec) -> PlanAnswer | None:
        resident = self._shared.residents.find(spec.model_id)
        answer = self._fitting.plan_resident(resident) if resident else None
        if resident and answer and (differs := self._conflicts(spec, resident)):
            return msgspec.structs.replace(
                answer,
                fits=False,
                reason=f"'{resident.id}' is resident with another spec; they differ in {', '.join(differs)}",
                suggestion="Unload it first.",
            )
        return answer

    async def _look(self, spec: ModelSpec, vram_mb: int | None) -> Figures | None:
        """The model's figures; None: its files are not here, and its size is known without them."""
        try:
            folder, gguf = await self._locate(spec)
            return await asyncio.to_thread(_check, spec, folder, gguf)
        except LoadRefusedError as error:
            is_away = error.facts["load_kind"] == "repo_fetch_failed"
            if is_away and (vram_mb is not None or self._fitting.knows(spec)):
                return None
            raise

    async def _locate(self, spec: ModelSpec) -> tuple[Path, list[str]]:
        """The folder of a model that is here, and the GGUF files that are meant of it."""
        folder = await self._shared.weights.locate(spec)
        can_read = await self._reads_gguf()
        return folder, await asyncio.to_thread(find_gguf, spec, folder, can_read=can_read)

    async def _reads_gguf(self) -> bool:
        return await reads_gguf(self._shared.platform, self._python)

    async def start(self) -> None:
        if self._spare is not None:
            self._shared.tasks.create_task(self._shared.spares.refill(self._spare))

    @property
    def _spare(self) -> Recipe | None:
        if not self._settings.warm_spare:
            return None
        return Recipe(
            python=self._python,
            environ=plan_import_environment(self._shared.platform, self._cache_dir),
            preload=Preload(harness=self.name, settings={"platform": self._shared.platform}),
        )

    @property
    def _python(self) -> str:
        return self._settings.python or sys.executable

    @property
    def _cache_dir(self) -> Path:
        return Path(self._settings.compile_cache_dir or _cache_home(os.environ)).expanduser()

    @property
    def _heartbeat_timeout_s(self) -> float:
        set_s = self._shared.supervision.heartbeat_timeout_s
        return set_s or HEARTBEAT_S[self._shared.platform]

    def _note_download(self, model_id: str, progress: DownloadProgress) -> None:
        """Its files are on their way. Who does not wait for the load is told so before long.

        Not at once: most of what a source has against a download comes with its first answer.
        """
        phase = Phase(phase=progress.phase, ratio=progress.ratio, eta_s=progress.eta_s)
        self._residents.note_phase(model_id, phase)
        planned = self._shared.runs[model_id].planned
        if progress.total_bytes:
            planned.set()
        elif not planned.is_set():
            asyncio.get_running_loop().call_later(self._first_answer_s, planned.set)

    def _engine_settings(self, placement: Placement) -> dict[str, Any]:
        on_cpu = self._shared.platform == "cpu"
        return {
            "platform": self._shared.platform,
            "kv_cache_mb": placement.cache.kv_cache_mb,
            "max_model_len": placement.cache.max_model_len,
            "can_sleep": self._settings.sleep,
            "allowed_media_domains": self._settings.allowed_media_domains,
            "gpu_memory_utilization": None if on_cpu else memory_share(placement),
        }


def plan_environment(
    platform: str, cache_dir: Path, devices: list[Device]
) -> dict[str, str | None]:
    """Variables of one engine. It sets its own beside them."""
    environ = plan_import_environment(platform, cache_dir)
    if platform == "cuda":
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(
            device.uuid if is_mig(device) else str(device.index) for device in devices
        )
    return environ


def plan_import_environment(platform: str, cache_dir: Path) -> dict[str, str | None]:
    """Variables that must be there before vLLM is imported, the same for every engine."""
    environ: dict[str, str | None] = {
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Legacy, in GiB, and it would override the cache size that is set.
        "VLLM_CPU_KVCACHE_SPACE": None,
        # What was compiled once is there for the next start.
        "VLLM_CACHE_ROOT": str(cache_dir / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache_dir / "inductor"),
        "TRITON_CACHE_DIR": str(cache_dir / "triton"),
    }
    if platform == "cuda":
        # CUDA counts the fastest first unless told to count as the driver does.
        environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return environ


def _cache_home(environ: Mapping[str, str]) -> str:
    """The service manager's directory, else the user's."""
    if given := environ.get("CACHE_DIRECTORY"):
        return given
    return f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/neuron"


def _name(gguf: list[str]) -> dict[str, str]:
    """The setting for an engine that reads GGUF: the plugin finds the other parts by the name of the first."""
    return {"gguf": gguf[0]} if gguf else {}


@contextmanager
def _told_of_adapter(spec: ModelSpec, name: str) -> Iterator[None]:
    """What is refused of an adapter's repository, as what the model is refused for."""
    try:
        yield
    except LoadRefusedError as error:
        facts = error.facts
        raise refused(
            spec,
            str(facts["load_kind"]),
            f"its adapter '{name}' ({facts['model']}): {facts['reason']}",
            str(facts["suggestion"]),
            retry_after_s=error.retry_after_s,
        ) from None


def _check(spec: ModelSpec, folder: Path, gguf: list[str]) -> Figures:
    """What a model's files say of its size; what a look at them tells is told here."""
    figures = _as_refused(spec, lambda: _read(spec, folder, gguf))
    if figures.names_nothing:
        raise refused(
            spec,
            "unsupported_architecture",
            f"{folder}/config.json names neither an architecture nor a model_type",
            "Use a model in the form that Hugging Face's transformers writes.",
        )
    return figures


def _read(spec: ModelSpec, folder: Path, gguf: list[str]) -> Figures:
    check_engine_args(spec.engine_args or {})
    check_files(folder)
    weights_mb(folder, spec.model_id)
    return read_model(folder, gguf)


def _as_refused(spec: ModelSpec, look: Callable[[], T]) -> T:
    """What a look at spec and files raises, as a refusal. A file that cannot be read is named."""
    try:
        return look()
    except StartFailedError as error:
        raise refused(spec, error.kind, str(error).rstrip("."), error.suggestion) from None
    except OSError as error:
        raise refused(
            spec,
            "repo_fetch_failed",
            f"its file {error.filename} cannot be read: {error.strerror}",
            "Let the user that the daemon runs as read it; where it leads nowhere, remove the model's files and "
            "fetch them again.",
        ) from None
