# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts the tokens of prompts as a vLLM engine would, without one: the same template, tokenizer and requests.

What differs from `vllm` is that nothing is run: no EngineCore, no weights, no device.
"""

import asyncio
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from cortex_core.http.front import Handler
from neuron.host.engine import Report, StartFailedError
from neuron.host.engines import vllm_causes, vllm_failures, vllm_files, vllm_options
from neuron.host.engines.vllm import VllmEngine, configure
from neuron.host.engines.vllm_serving import TOKENIZE, Serving
from neuron.host.messages import Activity, Phase, Ready, Start

# Its imports take 0.7 GB of it. The rest is for prompts and images; a request that wants more fails, and nothing else.
MAX_DATA_BYTES = 8 * 1024**3


class VllmCounter:
    """Fulfils `Engine` with one route."""

    def __init__(self) -> None:
        self._routes: Mapping[str, Handler] = {}

    @staticmethod
    def preload(settings: Mapping[str, Any]) -> None:
        VllmEngine.preload(settings)

    async def start(self, start: Start, report: Report) -> Ready:
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, MAX_DATA_BYTES))
        if start.model_path is None:
            raise StartFailedError("invalid_spec", "this needs a directory with a model")
        await asyncio.to_thread(vllm_files.check_files, Path(start.model_path))
        settings = vllm_options.read_settings(start.settings)
        options = vllm_options.plan_options(start, settings)
        environ = vllm_options.plan_environment(settings, start.run_dir)
        os.environ.update(environ)
        report(Phase(phase="importing"))
        library, rendering = await asyncio.to_thread(_import_libraries)
        report(Phase(phase="configuring"))
        try:
            config, arguments, parsers = await asyncio.to_thread(
                configure, library, rendering.configure, start, options, Path(start.run_dir)
            )
            running = rendering.Rendering(config)
            await running.build_serving(arguments)
        except StartFailedError:
            raise
        except Exception as error:  # whatever vLLM raises of the model's files
            causes = [vllm_causes.describe(error)]
            raise vllm_failures.read_start_failure(causes) from error
        serving = Serving(library, running, start.spec.model_id, parsers.thinking, settings)
        self._routes = {TOKENIZE: serving.routes()[TOKENIZE]}
        return Ready(versions=library.VERSIONS)

    def routes(self) -> Mapping[str, Handler]:
        return self._routes

    def activity(self) -> Activity:
        return Activity()

    async def beat(self) -> None:
        """The host's own loop is all there is."""

    async def probe(self) -> None:
        """Nothing is computed."""

    async def sleep(self, level: int) -> None:
        """Never asked: it has nothing of a device."""

    async def wake(self) -> None:
        """Never asked."""

    async def stop(self) -> None:
        """It started nothing."""


def _import_libraries() -> tuple[ModuleType, ModuleType]:
    from neuron.host.engines import vllm_library, vllm_rendering

    return vllm_library, vllm_rendering
