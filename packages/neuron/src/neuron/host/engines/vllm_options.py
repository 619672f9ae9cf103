# SPDX-License-Identifier: GPL-3.0-or-later
"""What a spec and the harness's settings mean in vLLM's own arguments. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from neuron.host.engine import StartFailedError
from neuron.host.messages import Start

MIB = 1024 * 1024
DEFAULT_KV_CACHE_MB = 256
# The room that vLLM makes for an adapter is one of these.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Adapters in one step; each takes a place in the device's memory, used or not.
MAX_LORAS_AT_ONCE = 8
# No machine's name, and never will be (RFC 2606).
NO_DOMAIN = "none.invalid"

# What a client may set. Nothing in here runs code, reads a path or opens a port.
ALLOWED_ENGINE_ARGS = frozenset(
    """
    block_size calculate_kv_scales convert enable_prefix_caching enforce_eager kv_cache_dtype limit_mm_per_prompt
    max_num_batched_tokens max_num_seqs override_generation_config pooler_config quantization runner
    scheduling_policy seed speculative_config stream_interval
    """.split()
)
# Of vLLM's speculative methods, those that name no second model to fetch.
ALLOWED_SPECULATIVE = frozenset(
    {"method", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"}
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The harness's settings from neuron.toml, as far as an engine reads them.

    Attributes:
        platform: `cpu` or `cuda`.
        kv_cache_mb: MiB of KV cache per device where the spec does not say.
        max_model_len: tokens of context where the spec does not say; None: the model's own.
        gpu_memory_utilization: the engine's claim over the device's total; None: vLLM's default.
        can_sleep: start it so that it can sleep. Not on the CPU.
        lora: adapter name to the directory with its files.
        allowed_media_domains: hosts that images may be fetched from.
        gguf: which file of the model's directory vLLM's plugin for GGUF is to read; None: none.
    """

    platform: str = "cpu"
    kv_cache_mb: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    can_sleep: bool = False
    lora: dict[str, str] = {}
    allowed_media_domains: list[str] = []
    gguf: str | None = None


def read_settings(settings: Mapping[str, Any]) -> Settings:
    """The settings this engine knows; others are the daemon's.

    Raises:
        StartFailedError: one has the wrong type. The operator's fault.
    """
    try:
        return msgspec.convert(settings, Settings)
    except msgspec.ValidationError as error:
        raise StartFailedError(
            "invalid_spec",
            f"the settings of the harness do not fit: {error}",
            "Correct [harness.vllm] in neuron.toml.",
        ) from None


def plan_options(start: Start, settings: Settings, lora_rank: int = 0) -> dict[str, Any]:
    """Arguments of vLLM by name, parsers and log settings not included.

    Args:
        start: what to run.
        settings: the harness's.
        lora_rank: the highest rank of its adapters; 0: there are none.

    Raises:
        StartFailedError: `invalid_spec`: an argument is not allowed.
    """
    spec = start.spec
    given = spec.engine_args or {}
    check_engine_args(given)
    context = spec.max_model_len or settings.max_model_len
    kv_cache_mb = spec.kv_cache_mb or settings.kv_cache_mb or DEFAULT_KV_CACHE_MB
    options: dict[str, Any] = {
        **_plan_files(start, settings),
        "served_model_name": spec.model_id,
        "max_model_len": context,
        "dtype": spec.dtype,
        "tensor_parallel_size": spec.tensor_parallel or 1,
        "chat_template": spec.chat_template,
        # Never vLLM's own choice: it takes a share of the whole device, and on a CPU touches all of it.
        "kv_cache_memory_bytes": kv_cache_mb * MIB,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_sleep_mode": True if settings.can_sleep and settings.platform == "cuda" else None,
        # With no list at all it would fetch from anywhere.
        "allowed_media_domains": settings.allowed_media_domains or [NO_DOMAIN],
        "enable_prompt_tokens_details": True,
        "disable_log_stats": True,
        "disable_uvicorn_access_log": True,
        "worker_extension_cls": "neuron.host.engines.vllm_probe.Probe",
        # Without it a model may write white space until its tokens are spent; the backend must be named.
        "structured_outputs_config": {"disable_any_whitespace": True, "backend": "xgrammar"},
    }
    if lora_rank:
        options |= _plan_lora(settings, lora_rank)
    if settings.platform == "cpu":
        options |= _CPU
        options["dtype"] = spec.dtype or "bfloat16"
    options |= given
    return {name: value for name, value in options.items() if value is not None}


def _plan_files(start: Start, settings: Settings) -> dict[str, Any]:
    path = start.model_path or start.spec.model_id
    if settings.gguf is None:
        return {"model": path, "quantization": start.spec.quant}
    # The plugin takes the configuration from where the tokenizer is. What the quant names is in the file.
    return {"model": f"{path}/{settings.gguf}", "tokenizer": path}


def lora_places(adapters: int, platform: str) -> int:
    """How many adapters the engine has room for on its devices, of so many that it serves."""
    # On a CPU, requests of the model itself that run beside an adapter's are computed with the adapter of the last
    # place: that stays empty.
    return adapters + 1 if platform == "cpu" else min(adapters, MAX_LORAS_AT_ONCE)


def lora_room(rank: int) -> int:
    """The rank that room is made for, where this is the highest."""
    return next(size for size in LORA_RANKS if size >= rank)


def _plan_lora(settings: Settings, rank: int) -> dict[str, Any]:
    modules = [{"name": name, "path": path} for name, path in settings.lora.items()]
    places = lora_places(len(modules), settings.platform)
    return {
        "enable_lora": True,
        "lora_modules": [msgspec.json.encode(module).decode() for module in modules],
        "max_lora_rank": lora_room(rank),
        "max_loras": places,
        "max_cpu_loras": max(places, len(modules)),
    }


_CPU = {
    # Compiling takes most of a minute on a CPU, at every first load.
    "enforce_eager": True,
    # A seeded request whose prefill is split over two steps kills the CPU engine.
    "enable_chunked_prefill": False,
    "gpu_memory_utilization": None,
}


def check_engine_args(given: Mapping[str, Any]) -> None:
    """Refuse what is not on the list.

    Raises:
        StartFailedError: `invalid_spec`, naming what is allowed.
    """
    _refuse_unknown("engine_args", given, ALLOWED_ENGINE_ARGS)
    speculative = given.get("speculative_config")
    if speculative is None:
        return
    if not isinstance(speculative, Mapping) or speculative.get("method") != "ngram":
        raise StartFailedError(
            "invalid_spec",
            "engine_args.speculative_config takes the method `ngram` only",
            'Write {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}.',
        )
    _refuse_unknown("engine_args.speculative_config", speculative, ALLOWED_SPECULATIVE)


def _refuse_unknown(where: str, given: Iterable[str], allowed: frozenset[str]) -> None:
    if unknown := sorted(set(given) - allowed):
        raise StartFailedError(
            "invalid_spec",
            f"{where} has {', '.join(unknown)}, which may not be set here",
            f"Allowed are: {', '.join(sorted(allowed))}.",
        )


def write_arguments(options: Mapping[str, Any]) -> list[str]:
    """The options as vLLM's command line has them, whose parser checks each value."""
    arguments: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True:
            arguments.append(f"--{flag}")
        elif value is False:
            arguments.append(f"--no-{flag}")
        elif isinstance(value, list):
            arguments += [f"--{flag}", *map(str, value)]
        elif isinstance(value, Mapping):
            arguments.append(f"--{flag}={msgspec.json.encode(value).decode()}")
        else:
            arguments.append(f"--{flag}={value}")
    return arguments


def plan_environment(settings: Settings, scratch: str) -> dict[str, str]:
    """Environment variables that must be set before an engine is configured; `scratch` is the directory for its sockets."""
    return {**plan_import_environment(settings), "VLLM_RPC_BASE_PATH": scratch}


def plan_import_environment(settings: Settings) -> dict[str, str]:
    """Environment variables that must be set before vLLM is imported, the same for every engine."""
    environment = {
        "HF_HUB_OFFLINE": "1",  # the files are here; a lookup would retry for half a minute
        "VLLM_NO_USAGE_STATS": "1",
        # Where the ranks of one machine meet; by default it listens on the machine's own address.
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_HOST_IP": "127.0.0.1",
        # An allowed domain could lead to one that is not.
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        # One attempt, and a longer one. With its own three of growing length a request would hang for minutes.
        "VLLM_IMAGE_FETCH_TIMEOUT": "15",
        "VLLM_MEDIA_FETCH_MAX_RETRIES": "1",
        # Decoded it takes 150 MB. No camera's pictures are larger.
        "VLLM_MAX_IMAGE_PIXELS": "50000000",
        # Its own 4 are OpenAI's; Anthropic names no number. Each is looked for in all that is written.
        "VLLM_MAX_STOP_STRINGS": "256",
        "TOKENIZERS_PARALLELISM": "false",  # its threads would not survive the fork
        # Seconds after which who waits for another rank looks by itself: words to wake it can be lost (`vllm_ranks.SPIN_S`).
        "VLLM_RINGBUFFER_WARNING_INTERVAL": "5",
    }
    if settings.platform == "cpu":
        # Two sampler functions are compiled on first use even when eager: half a minute of silence.
        environment["TORCHDYNAMO_DISABLE"] = "1"
        # On a CPU: keep the only rank in EngineCore's own process.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # It binds threads by what OpenMP reads when it is loaded, which is over when a rank is forked: `count_threads`.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return environment


def count_threads(ranks: int, cores: int) -> int:
    """How many threads each rank computes with on a CPU: one core is left to what feeds them and sends what they say.

    vLLM leaves one too. On two cores 8 streams of the demo model wrote 1250 tokens/s with one thread, and 912 with two.
    """
    return max(1, (cores - 1) // ranks)
