# SPDX-License-Identifier: GPL-3.0-or-later
"""Which settings the daemon has: the whole of neuron.toml. Pure."""

from typing import Annotated, Literal

import msgspec

from cortex_core.control import ModelSpec
from cortex_core.wire import NEURON_PORT
from neuron.harnesses import HARNESSES

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Mb = Annotated[int, msgspec.Meta(gt=0)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class HarnessEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[harnesses]]` entry: a kind of engine that may be loaded here.

    Attributes:
        name: `vllm`, or `echo`, which needs no model and answers from the prompt.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in HARNESSES:
            raise ValueError(f"there is no harness '{self.name}'; known are {', '.join(HARNESSES)}")


class VllmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[harness.vllm]`: how vLLM engines are run.

    Attributes:
        python: interpreter of the environment that has vLLM; absent: the daemon's own.
        platform: `cpu` or `cuda`; absent: `cuda` where there is an NVIDIA GPU, else `cpu`.
        model_dirs: directories that hold models as `org/name`; looked through before the Hugging Face cache.
        hf_cache: directory of the Hugging Face cache, which holds `models--org--name`; absent: where
            HF_HUB_CACHE or HF_HOME say, else `~/.cache/huggingface/hub`.
        default_source: the source that an id without `scheme:` belongs to.
        start_timeout_s: seconds an engine may take to come up.
        stop_timeout_s: seconds an engine may take to end before it is killed.
        cpu_budget_mb: MiB of host memory for weights and KV cache of all models on the CPU: the size of the
            device `cpu`.
        kv_cache_mb: MiB of KV cache per device for a model whose spec does not say; absent: 256 on the CPU,
            4096 on a GPU.
        max_model_len: tokens of context for a model whose spec does not say; absent: the model's own.
    """

    python: str | None = None
    platform: Literal["cpu", "cuda"] | None = None
    model_dirs: list[str] = []
    hf_cache: str | None = None
    default_source: str = "huggingface"
    start_timeout_s: _Positive = 600.0
    stop_timeout_s: _Positive = 20.0
    cpu_budget_mb: _Mb = 4096
    kv_cache_mb: _Mb | None = None
    max_model_len: _Mb | None = None


class EchoSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[harness.echo]`: how echo engines are run.

    Attributes:
        start_timeout_s: seconds an engine may take to come up.
        stop_timeout_s: seconds an engine may take to end before it is killed.
    """

    start_timeout_s: _Positive = 60.0
    stop_timeout_s: _Positive = 5.0


class HarnessSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[harness.…]`: one table of settings for each kind of engine.

    Attributes:
        vllm: of vLLM engines.
        echo: of echo engines.
    """

    vllm: VllmSettings = VllmSettings()
    echo: EchoSettings = EchoSettings()


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of neuron.toml.

    Attributes:
        listen: address to listen on. There is no authentication here: let only the gateway reach it.
        port: TCP port to listen on; 0: any that is free.
        drain_s: seconds that running requests may take to end when the daemon stops or a model is unloaded.
        max_body_mb: MiB that a request body may have.
        run_dir: directory for sockets and scratch files, at most 48 bytes long since paths of sockets are
            short; absent: one under the system's temporary directory. What a dead daemon left there is removed.
        harnesses: kinds of engine that may be loaded here; absent: `vllm`.
        harness: settings of each kind.
        default_models: loaded one after the other when the daemon starts. Here alone a `model_id` may be an
            absolute path.
    """

    listen: str = "0.0.0.0"  # noqa: S104 - the gateway is another machine
    port: _Port = NEURON_PORT
    drain_s: _NotNegative = 60.0
    max_body_mb: _Mb = 64
    run_dir: str | None = None
    harnesses: list[HarnessEntry] = msgspec.field(
        default_factory=lambda: [HarnessEntry(name="vllm")]
    )
    harness: HarnessSettings = HarnessSettings()
    default_models: list[ModelSpec] = []

    def __post_init__(self) -> None:
        names = self.harness_names
        _refuse_twice("harness", names)
        _refuse_twice("default model", [spec.model_id for spec in self.default_models])
        for spec in self.default_models:
            if spec.harness not in names:
                raise ValueError(
                    f"the default model '{spec.model_id}' wants the harness '{spec.harness}'; "
                    f"[[harnesses]] has {', '.join(names) or 'none'}"
                )

    @property
    def harness_names(self) -> list[str]:
        """Kinds of engine that may be loaded here."""
        return [entry.name for entry in self.harnesses]


def _refuse_twice(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the {what} '{name}' is there twice")
