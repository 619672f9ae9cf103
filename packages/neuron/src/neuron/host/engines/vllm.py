# SPDX-License-Identifier: GPL-3.0-or-later
"""The vLLM engine: brings a model up in this process and its children, serves it, ends it.

vllm            this: the order of things
vllm_counter    the same order for what only counts tokens
vllm_library    vLLM's engine and serving objects; it, and the next four, import vLLM
vllm_loading    how much of the weights has been read
vllm_rendering  vLLM's prompts without an engine
vllm_parsing    reasoning and calls taken out of answers, in the place that vLLM has for it
vllm_forming    the form that an answer must have, in vLLM's words
vllm_serving    a request's way through vLLM's serving objects
vllm_wire       what changes between vLLM's answers and ours            pure
vllm_asked      what changes between a client's request and vLLM's      pure
vllm_responses  what changes in the Responses API, both ways            pure
vllm_media      which media a request carries, and may carry            pure
vllm_options    spec and settings as vLLM's arguments                   pure
vllm_parsers    which parsers understand the model                      pure
vllm_reasoning  what of an answer is reasoning                          pure
vllm_calls      what vLLM's tool parsers leave out                      pure
vllm_forms      forms that answers are held to                          pure
vllm_text       white space around texts                                pure
vllm_failures   what vLLM's errors mean                                 pure
vllm_load       counts and rates                                        pure
vllm_files      whether the model's directory can be loaded at all
vllm_adapters   the same of LoRA adapters
vllm_causes     the true cause of a failed start
"""

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from cortex_core.errors import EngineDiedError
from cortex_core.http.front import Handler
from cortex_core.node import Limits
from neuron.host import segments
from neuron.host.engine import PoisonedError, Report, StartFailedError
from neuron.host.engines import vllm_causes, vllm_failures, vllm_files, vllm_options, vllm_parsers
from neuron.host.engines.vllm_adapters import check_adapters
from neuron.host.engines.vllm_load import Load
from neuron.host.engines.vllm_parsers import Parsers
from neuron.host.engines.vllm_serving import Serving
from neuron.host.messages import Activity, Phase, Ready, Start, Steps
from neuron.host.processes import Watched, descendants

T = TypeVar("T")

# How vLLM names its processes. Others that it starts, for compilers say, may end when they like.
_PROCESS_NAME = "VLLM::"
# Tokens of one probe: they do not count as work to be probed.
_PROBE_TOKENS = 3
# One process needs about 1 s; ranks need several to end each other, and leave shared memory when killed.
STOP_S = 10.0
# Of its threads, beyond that.
THREADS_STOP_S = 2.0
# At the processes of an engine that starts: all of the machine's are gone through.
LOOK_EVERY_S = 0.2


class VllmEngine:
    """Runs one model on vLLM."""

    def __init__(self, *, stop_s: float = STOP_S) -> None:
        self._stop_s = stop_s
        self._load = Load()
        self._running: Any = None
        self._serving: Serving | None = None
        self._scratch: Path | None = None
        self._model_id = ""
        self._routes: dict[str, Handler] = {}
        self._watched = Watched({})
        self._probed = 0
        self._asleep = False
        # Told of each step; None: nobody is.
        self._trace: Report | None = None

    @staticmethod
    def preload(settings: Mapping[str, Any]) -> None:
        environment = vllm_options.plan_import_environment(vllm_options.read_settings(settings))
        os.environ.update(environment)
        _import_library().import_ahead()

    async def start(self, start: Start, report: Report) -> Ready:
        self._model_id = start.spec.model_id
        settings = vllm_options.read_settings(start.settings)
        if start.model_path is None:
            raise StartFailedError("invalid_spec", "this engine needs a directory with a model")
        model_path = Path(start.model_path)
        await asyncio.to_thread(vllm_files.check_files, model_path)
        lora_rank = await asyncio.to_thread(
            check_adapters, settings.lora, self._model_id, model_path
        )
        options = vllm_options.plan_options(start, settings, lora_rank)
        self._scratch = scratch = Path(start.run_dir) / "vllm"
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            return await self._bring_up(start, settings, options, report)
        except StartFailedError:
            await self.stop()
            raise
        except Exception as error:  # whatever vLLM raises: the cause is what its processes saw
            causes = [*vllm_causes.read_causes(scratch / "causes"), vllm_causes.describe(error)]
            await self.stop()
            raise vllm_failures.read_start_failure(causes) from error

    async def _bring_up(
        self,
        start: Start,
        settings: vllm_options.Settings,
        options: dict[str, Any],
        report: Report,
    ) -> Ready:
        scratch = str(self._scratch)
        report(Phase(phase="importing"))
        os.environ.update(vllm_options.plan_environment(settings, scratch))
        tempfile.tempdir = scratch  # where the ranks meet, and what names their shared memory
        library = await asyncio.to_thread(_import_library)
        report(Phase(phase="configuring"))
        config, arguments, parsers = await asyncio.to_thread(
            configure, library, library.configure, start, options, Path(scratch)
        )
        report(Phase(phase="loading"))
        await asyncio.to_thread(_tell_loading, report)
        # In a thread, so that the host goes on telling that it lives. EngineCore is then forked beside the
        # loop's thread. That is safe here: the loop only waits for its next heartbeat, holding no lock, no
        # model has run and no CUDA is touched, and the child runs nothing of the loop's.
        starting = asyncio.to_thread(library.Running, config, self._load)
        self._running = await _unless_one_ends(starting)
        self._watched = Watched(_processes())
        await self._running.build_serving(arguments)
        report(Phase(phase="warming_up"))
        if not await self._running.is_sound(self._model_id):
            raise StartFailedError(
                "corrupt_weights",
                "what it computes are no numbers (NaN)",
                "Fetch the model's files again, or choose another `dtype` or `quant`.",
            )
        if (
            self._running.died
        ):  # of the first thing that it was asked; what its processes saw tells why
            raise EngineDiedError(model=self._model_id, reason="EngineCore is gone")
        self._probed = self._work()
        self._serving = Serving(library, self._running, self._model_id, parsers.thinking, settings)
        self._routes = self._serving.routes()
        memory = await self._running.rank_memory()
        if start.traces:
            await self._running.begin_memory_trace()
            self._trace = report
        return self._describe(library.VERSIONS, parsers, memory)

    def _describe(
        self, versions: dict[str, str], parsers: Parsers, memory: list[dict[str, int]]
    ) -> Ready:
        running = self._running
        capabilities = _capabilities(running, parsers)
        context: int = running.context_tokens
        if running.kv_cache_tokens:  # a pooling model has none
            context = min(context, running.kv_cache_tokens)
        figures = running.figures()
        return Ready(
            capabilities=capabilities,
            limits=Limits(context=context, output=context if "text" in capabilities else None),
            can_sleep=running.can_sleep,
            max_running=running.max_running,
            ranks=[{"rank": rank, **mine, **figures} for rank, mine in enumerate(memory)],
            versions=versions,
        )

    def routes(self) -> Mapping[str, Handler]:
        return self._routes

    def activity(self) -> Activity:
        """What the engine is doing now. Never waits.

        Raises:
            EngineDiedError: EngineCore is gone and does not come back; the host has nothing left to serve with.
        """
        if self._running is None or not self._routes:  # the start itself tells why it fails
            return Activity()
        if self._running.died:
            raise EngineDiedError(model=self._model_id, reason="EngineCore is gone")
        if (name := self._watched.ended()) is not None:
            raise EngineDiedError(model=self._model_id, reason=f"its process {name} has ended")
        return self._load.activity(time.monotonic(), self._running.unfinished)

    async def beat(self) -> None:
        if self._running is not None and self._routes:
            await self._running.beat()
            if self._trace is not None:
                free_mb = await self._running.take_memory_trace()
                if any(free_mb):
                    self._trace(Steps(free_mb=free_mb))

    async def probe(self) -> None:
        if self._asleep or self._work() - self._probed <= _PROBE_TOKENS:
            return
        self._probed = self._work()
        if not await self._running.is_sound(self._model_id):
            logits = await self._running.look_at_logits(self._model_id)
            raise PoisonedError("what it computes are no numbers (NaN)", logits)

    def _work(self) -> int:
        """Tokens read and written so far."""
        return self._load.counts.prompt_tokens + self._load.counts.generated_tokens

    async def sleep(self, level: int) -> None:
        self._asleep = True
        await self._running.sleep(level)

    async def wake(self) -> None:
        await self._running.wake()
        self._asleep = False

    async def stop(self) -> None:
        self._watched.close()
        running, self._running = self._running, None
        scratch, self._scratch = self._scratch, None
        if scratch is None:
            return
        tempfile.tempdir = None
        meetings = segments.find_meetings(scratch)
        if self._serving is not None:
            self._serving.end()
        if running is not None:
            # It bounds the end of its processes, and not of its threads: one may be reading a long prompt.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._stop_s + THREADS_STOP_S):
                    await asyncio.to_thread(running.stop, self._stop_s)
        await asyncio.to_thread(_sweep, scratch, meetings)


def _processes() -> dict[int, str]:
    """Those of vLLM that this one has started, by process id."""
    found = descendants(os.getpid())
    return {pid: name for pid, name in found.items() if name.startswith(_PROCESS_NAME)}


async def _unless_one_ends(starting: Coroutine[Any, Any, T]) -> T:
    """What a start gives, unless a process of it ends: of a rank's end vLLM tells after 5 to 9 s.

    Raises:
        RuntimeError: one has ended. What it had to say of that is in the causes.
    """
    task, others = asyncio.ensure_future(starting), _processes().keys()
    watched = Watched({})
    try:
        while not (await asyncio.wait({task}, timeout=LOOK_EVERY_S))[0]:
            if (name := watched.ended()) is not None:
                raise RuntimeError(f"its process {name} has ended")
            watched.close()
            watched = Watched({p: name for p, name in _processes().items() if p not in others})
        return task.result()
    finally:
        watched.close()
        task.cancel()


def _import_library() -> ModuleType:
    from neuron.host.engines import vllm_library

    return vllm_library


def _tell_loading(report: Report) -> None:
    from neuron.host.engines import vllm_loading

    vllm_loading.tell_ratio(lambda ratio: report(Phase(phase="loading", ratio=ratio)))


def configure(
    library: Any,
    build: Callable[[Namespace], Any],
    start: Start,
    options: dict[str, Any],
    scratch: Path,
) -> tuple[Any, Namespace, Parsers]:
    """The configuration that `build` makes, vLLM's arguments, and the parsers that understand the model. Blocks.

    Raises:
        StartFailedError: vLLM does not take the arguments.
    """
    logging_file = scratch / "logging.json"
    logging_file.write_text(json.dumps(vllm_causes.logging_config(scratch / "causes")))
    options = {**options, "logging_config": {"pylogging_config_file": str(logging_file)}}
    try:
        arguments = library.read_arguments(vllm_options.write_arguments(options))
    except library.ArgumentsError as error:
        raise StartFailedError("invalid_spec", str(error), "Correct the spec.") from None
    config = build(arguments)
    chosen = vllm_parsers.choose_parsers(*library.read_markers(config, arguments))
    parsers = chosen._replace(
        tool=start.spec.tool_parser or chosen.tool,
        reasoning=start.spec.reasoning_parser or chosen.reasoning,
    )
    library.apply_parsers(config, arguments, parsers)
    return config, arguments, parsers


def _capabilities(running: Any, parsers: Parsers) -> list[str]:
    found = {
        "text": "generate" in running.tasks,
        "tools": "generate" in running.tasks and parsers.tool is not None,
        "reasoning": "generate" in running.tasks and parsers.reasoning is not None,
        "vision": "generate" in running.tasks and running.sees,
        "embeddings": "embed" in running.tasks,
        "score": running.scores,
        "rerank": running.scores,
    }
    return [capability for capability, there in found.items() if there]


def _sweep(scratch: Path, meetings: list[str]) -> None:
    """Remove the engine's files, and the shared memory of ranks that were killed, named after where they met."""
    segments.sweep_met(meetings)
    shutil.rmtree(scratch, ignore_errors=True)
