# SPDX-License-Identifier: GPL-3.0-or-later
"""Which settings the daemon has: the whole of neuron.toml. Pure."""

import re
from typing import Annotated, Literal

import msgspec

from cortex_core.control import ModelSpec
from cortex_core.http.keys import check_key
from cortex_core.wire import NEURON_PORT
from neuron.harnesses import HARNESSES

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Mb = Annotated[int, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_CountOrZero = Annotated[int, msgspec.Meta(ge=0)]
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


# The source that is always there, whether neuron.toml names it or not.
HUGGINGFACE = "huggingface"
_SCHEME = re.compile(r"[a-z][a-z0-9_-]*")
_ENDPOINT = re.compile(r"https?://[^/@\s]+(/[^@\s]*)?")


class SourceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[harness.vllm.sources.<scheme>]`: where models with ids `scheme:org/name` come from; it speaks as the Hugging Face Hub does.

    Attributes:
        endpoint: its address; absent, for `huggingface` only: what HF_ENDPOINT says, else https://huggingface.co.
        auth_env: the environment variable that its token is in, read once at start; absent: it needs none, and for
            `huggingface` HF_TOKEN.
        cache_dir: directory that its models are kept in; absent: the Hugging Face cache for `huggingface`, and
            one beside it for each other source.
    """

    endpoint: str | None = None
    auth_env: str | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if self.endpoint is not None and not _ENDPOINT.fullmatch(self.endpoint):
            raise ValueError(
                f"the endpoint '{self.endpoint}' is not http:// or https:// and a host, without a user in it"
            )


class VllmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[harness.vllm]`: how vLLM engines are run.

    Attributes:
        python: interpreter of the environment that has vLLM; absent: the daemon's own.
        platform: `cpu` or `cuda`; absent: `cuda` where there is an NVIDIA GPU, else `cpu`.
        model_dirs: directories that hold models as `org/name`; looked through before the Hugging Face cache.
        hf_cache: directory of the Hugging Face cache, which holds `models--org--name`; absent: where
            HF_HUB_CACHE or HF_HOME say, else `~/.cache/huggingface/hub`.
        default_source: the source that an id without `scheme:` belongs to.
        sources: further sources by their scheme, or other settings of `huggingface`.
        download: fetch a model that is not here from its source when it is to be loaded.
        disk_budget_mb: MiB that the models of all sources may take on disk; what was not used for longest goes first,
            never a default model or one that is loaded. Absent: nothing is ever removed.
        start_timeout_s: seconds an engine may take to come up.
        stop_timeout_s: seconds an engine may take to end before it is killed.
        cpu_budget_mb: MiB of host memory for weights and KV cache of all models on the CPU: the size of the
            device `cpu`.
        kv_cache_mb: MiB of KV cache per device for a model whose spec does not say; absent: 256 on the CPU; on a
            GPU enough for 16 requests of full length or 131072 tokens, whichever is less, but at least for one
            request, and never more than is free.
        max_model_len: the most tokens of context for a model whose spec does not say; absent: the model's own.
            Where the KV cache holds fewer, it is lowered to what it holds.
        compile_cache_dir: directory for what vLLM and torch compile, kept over restarts; absent: where
            CACHE_DIRECTORY says, as the service manager sets it, else `~/.cache/neuron`.
        allowed_media_domains: hosts that vision models may fetch images from, for clients that send a URL of one;
            redirects are not followed. Absent: none, and images are taken as `data:` URIs only.
        warm_spare: keep a process with vLLM imported, so that a load takes seconds. It holds about half a GiB of
            host memory.
        sleep: start engines so that they can sleep, with their weights in host memory; on GPUs only.
    """

    python: str | None = None
    platform: Literal["cpu", "cuda"] | None = None
    model_dirs: list[str] = []
    hf_cache: str | None = None
    default_source: str = HUGGINGFACE
    sources: dict[str, SourceSettings] = {}
    download: bool = True
    disk_budget_mb: _Mb | None = None
    start_timeout_s: _Positive = 600.0
    stop_timeout_s: _Positive = 20.0
    cpu_budget_mb: _Mb = 4096
    kv_cache_mb: _Mb | None = None
    max_model_len: _Mb | None = None
    compile_cache_dir: str | None = None
    allowed_media_domains: list[str] = []
    warm_spare: bool = True
    sleep: bool = True

    def __post_init__(self) -> None:
        for scheme, source in self.sources.items():
            if not _SCHEME.fullmatch(scheme):
                raise ValueError(
                    f"a source's name is lower case letters and digits, not '{scheme}'"
                )
            if source.endpoint is None and scheme != HUGGINGFACE:
                raise ValueError(f"the source '{scheme}' has no `endpoint`")
        known = {HUGGINGFACE: None, **self.sources}
        if self.default_source not in known:
            raise ValueError(
                f"the default_source '{self.default_source}' is no source; known are {', '.join(known)}"
            )


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


class AdmissionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[admission]`: how many requests each model takes. What is beyond is refused before its answer begins.

    Attributes:
        max_running: requests that a model's engine is given at once; absent: as many as the engine runs.
        max_waiting: requests that may wait for one of those places; one more is refused with `queue_full`, or has the last one
            of the longest line refused, where its principal has none waiting.
        max_wait_s: seconds that one may wait; then it is refused with `wait_timeout`. A gateway is told, and waits for the
            beginning of an answer for so much longer than its `idle_timeout_s`.
        max_per_principal: requests, running and waiting, that one principal may have at a model; one more is
            refused with `rate_limit_exceeded`. Absent: any number. Principals take turns in any case. A gateway tells them
            by the key that a client shows, else by its address; who asks a neuron itself may say `x-cortex-principal`.
    """

    max_running: _Count | None = None
    max_waiting: _CountOrZero = 256
    max_wait_s: _Positive = 300.0
    max_per_principal: _Count | None = None


class SupervisionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[supervision]`: when an engine is taken for lost, and what happens then.

    Attributes:
        heartbeat_timeout_s: seconds that an engine may be silent before it is ended and started again; absent: 60,
            and 600 for vLLM on the CPU, where one step may read a whole long prompt.
        probe_interval_s: seconds between two looks at whether an engine computes numbers; one that does not is
            ended and started again.
        max_restarts: how often a lost engine is started again within `restart_window_s`; then it is failed.
        restart_window_s: seconds of service after which a loss is forgotten.
    """

    heartbeat_timeout_s: _Positive | None = None
    probe_interval_s: _Positive = 10.0
    max_restarts: Annotated[int, msgspec.Meta(ge=0)] = 5
    restart_window_s: _Positive = 600.0


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of neuron.toml.

    Attributes:
        listen: address to listen on.
        port: TCP port to listen on; 0: any that is free.
        secret: what callers must show, as `Authorization: Bearer …` or `x-api-key`; the gateway does, where its
            `[[neurons]]` has the same. Or `sha256:` and its digest. Absent: whoever reaches the port gives orders.
        drain_s: seconds that running requests may take to end when the daemon stops or a model is unloaded.
        max_body_mb: MiB that a request body may have.
        run_dir: directory for sockets and scratch files, at most 48 bytes long since paths of sockets are
            short; absent: one under the system's temporary directory. What a dead daemon left there is removed.
        state_dir: directory for what was measured on this machine, which outlives the daemon; absent: the service
            manager's (STATE_DIRECTORY), else `~/.local/state/neuron`.
        harnesses: kinds of engine that may be loaded here; absent: `vllm`.
        harness: settings of each kind.
        admission: how many requests each model takes.
        supervision: when an engine is taken for lost, and what happens then.
        max_sleeping: models that may sleep on one device; ten seconds after another came, the one that sleeps longest is unloaded.
        log_level: the least that is logged; `trace` is `debug`, and has vLLM engines tell what each step leaves free of
            their devices, which every step pays for.
        default_models: loaded one after the other when the daemon starts. Here alone a `model_id` may be an
            absolute path.
    """

    listen: str = "0.0.0.0"  # noqa: S104 - the gateway is another machine
    port: _Port = NEURON_PORT
    secret: str | None = None
    drain_s: _NotNegative = 60.0
    max_body_mb: _Mb = 64
    run_dir: str | None = None
    state_dir: str | None = None
    harnesses: list[HarnessEntry] = msgspec.field(
        default_factory=lambda: [HarnessEntry(name="vllm")]
    )
    harness: HarnessSettings = HarnessSettings()
    admission: AdmissionSettings = AdmissionSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    max_sleeping: Annotated[int, msgspec.Meta(ge=0)] = 2
    log_level: Literal["trace", "debug", "info", "warning", "error"] = "info"
    default_models: list[ModelSpec] = []

    def __post_init__(self) -> None:
        names = self.harness_names
        if self.secret is not None:
            check_key("secret", self.secret)
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
