# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM's engine started in this process, and its serving objects to ask.

vLLM promises nothing about its names, so all of them stand here, and in `vllm_parsing` and `vllm_forming`. They were read in 0.29 to 0.33. Importing
this module takes seconds, and wants the variables of `vllm_options.plan_environment` set before.
"""

import contextlib
import copy
import importlib
import itertools
import json
import logging
import math
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

import torch
import vllm
from jinja2 import TemplateError
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import State
from starlette.responses import Response
from vllm.connections import aiohttp
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.tokenize.protocol import TokenizeRequest
from vllm.exceptions import GenerationError, VLLMError
from vllm.inputs import TokensPrompt
from vllm.platforms import current_platform
from vllm.pooling_params import PoolingParams
from vllm.renderers.chat_utils import CustomChatCompletionMessageParam
from vllm.tokenizers.registry import cached_tokenizer_from_config
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import PrometheusStatLogger

from neuron.host.engines import vllm_parsing  # noqa: F401  # what it changes in vLLM is its use
from neuron.host.engines.vllm_asked import Known
from neuron.host.engines.vllm_failures import Refusal, read_validation
from neuron.host.engines.vllm_known import read_known
from neuron.host.engines.vllm_load import Load
from neuron.host.engines.vllm_parsers import MARKERS, OURS, Parsers
from neuron.host.engines.vllm_ranks import prepare_ranks

# A serving object's answer: a stream of texts, or a body.
Answer = Any

VERSIONS = {"vllm": str(vllm.__version__), "torch": str(torch.__version__)} | (
    {"cuda": str(torch.version.cuda)} if torch.version.cuda else {}
)

# A URL of an allowed domain that cannot be fetched; an image that would take gigabytes.
_MEDIA_ERRORS = (aiohttp.ClientError, TimeoutError, ConnectionError, Image.DecompressionBombError)
# What raises where a request is at fault; anything else is a fault of ours.
REQUEST_ERRORS = (
    VLLMError,
    ValueError,
    TypeError,
    OverflowError,
    NotImplementedError,
    TemplateError,
    *_MEDIA_ERRORS,
)
# The same of a stream, which has read its request; other faults there are ours.
STREAM_ERRORS = (VLLMError, ValueError)


# What EngineCore and its ranks import before they do anything; by name, since a version may lack one.
_IMPORTED_AHEAD = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.executor.multiproc_executor",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.models.qwen3",
    "xgrammar",
)
_IMPORTED_AHEAD_ON_CPU = ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner")


def import_ahead() -> None:
    """Import what a start would import next."""
    names = _IMPORTED_AHEAD + (_IMPORTED_AHEAD_ON_CPU if current_platform.is_cpu() else ())
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


_PROBES = itertools.count()


class ArgumentsError(Exception):
    """vLLM's command line does not take the arguments; the message is its own."""


def read_arguments(arguments: list[str]) -> Namespace:
    """The arguments as vLLM's own command line reads them.

    Raises:
        ArgumentsError: it does not take them.
    """
    parser = make_arg_parser(FlexibleArgumentParser())

    def refuse(message: str) -> None:
        raise ArgumentsError(message)

    parser.error = refuse  # its own ends the process
    namespace: Namespace = parser.parse_args(arguments)
    return namespace


def configure(arguments: Namespace) -> Any:
    """The engine's whole configuration. Raises whatever vLLM's checks raise, mostly pydantic's ValidationError."""
    return AsyncEngineArgs.from_cli_args(arguments).create_engine_config()


def read_markers(config: Any, arguments: Namespace) -> tuple[frozenset[str], str]:
    """Which of MARKERS the tokenizer has as one token, and the text of the chat template; empty: none."""
    tokenizer = cached_tokenizer_from_config(config.model_config)
    vocabulary = tokenizer.get_vocab()
    template = arguments.chat_template or getattr(tokenizer, "chat_template", None) or ""
    if isinstance(template, Mapping):  # several templates by name
        template = "\n".join(template.values())
    return frozenset(marker for marker in MARKERS if marker in vocabulary), str(template)


def apply_parsers(config: Any, arguments: Namespace, parsers: Parsers) -> None:
    """Write the parsers where EngineCore and the serving objects look for them."""
    if parsers.reasoning:
        # EngineCore knows vLLM's parsers only, and needs none where the form of an answer has room for reasoning.
        if parsers.reasoning != OURS:
            config.structured_outputs_config.reasoning_parser = parsers.reasoning
        arguments.structured_outputs_config = copy.copy(config.structured_outputs_config)
        arguments.structured_outputs_config.reasoning_parser = parsers.reasoning
        arguments.reasoning_parser = parsers.reasoning
    if parsers.tool:
        arguments.enable_auto_tool_choice = True
        arguments.tool_call_parser = parsers.tool


def _stat_logger(load: Load) -> type[Any]:
    """A class, since vLLM looks at the class: this one keeps its own Prometheus logger away."""

    class StatLogger(PrometheusStatLogger):  # type: ignore[misc]  # vLLM has no types here
        def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
            self.engine_indexes = engine_indexes or [0]

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            now_s = time.monotonic()
            if scheduler_stats is not None:
                load.note_scheduler(
                    scheduler_stats.num_running_reqs, scheduler_stats.kv_cache_usage
                )
                cache = scheduler_stats.prefix_cache_stats
                load.note_cache(cache.queries, cache.hits)
                if (drafts := scheduler_stats.spec_decoding_stats) is not None:
                    load.note_drafts(drafts.num_draft_tokens, drafts.num_accepted_tokens)
            if iteration_stats is not None:
                load.note_tokens(
                    now_s,
                    iteration_stats.num_prompt_tokens,
                    iteration_stats.num_generation_tokens,
                    iteration_stats.num_preempted_reqs,
                )
                for request in iteration_stats.finished_requests:
                    load.note_finished(
                        request.queued_time, request.prefill_time, request.decode_time
                    )

        def log_engine_initialized(self) -> None: ...
        def record_sleep_state(self, *_: Any, **__: Any) -> None: ...
        def record_admission_rejection(self, *_: Any, **__: Any) -> None: ...

    return StatLogger


class Running:
    """A running engine and its serving objects."""

    def __init__(self, config: Any, load: Load) -> None:
        """Start the engine. Blocks until EngineCore is up, or raises what it says."""
        prepare_ranks(config.parallel_config.tensor_parallel_size)
        self.config = config
        self.state = State()
        self.tasks: tuple[str, ...] = ()
        self._level = 0
        self._engine = AsyncLLM.from_vllm_config(
            config, stat_loggers=[_stat_logger(load)], disable_log_stats=True
        )

    async def build_serving(self, arguments: Namespace) -> None:
        """Make the serving objects."""
        self.tasks = await self._engine.get_supported_tasks()
        await init_app_state(self._engine, self.state, arguments, self.tasks)

    async def beat(self) -> None:
        """Have EngineCore and every rank answer. Where they cannot any more, `died` tells."""
        with contextlib.suppress(EngineDeadError):
            await self._engine.collective_rpc("check_health")

    async def is_sound(self, model_id: str) -> bool:
        """Whether what it computes are numbers: one step that reads and one that writes are looked at."""
        if "generate" not in self.tasks:
            return await self._pools_numbers()
        request = CompletionRequest(
            model=model_id, prompt=[0], max_tokens=2, ignore_eos=True, temperature=0, logprobs=0
        )
        try:
            answer = await self.state.openai_serving_completion.create_completion(request, None)
        except EngineDeadError:  # `died` tells
            return True
        if is_error_answer(answer):  # it is too busy to be asked
            return True
        logprobs = answer.choices[0].logprobs.token_logprobs
        return not any(math.isnan(logprob) for logprob in logprobs)

    async def _pools_numbers(self) -> bool:
        task = self.config.model_config.get_pooling_task(self.tasks)
        prompt = TokensPrompt(prompt_token_ids=[0])
        pooled = self._engine.encode(prompt, PoolingParams(task=task), f"probe-{next(_PROBES)}")
        try:
            return not [1 async for output in pooled if torch.isnan(output.outputs.data).any()]
        except EngineDeadError:  # `died` tells
            return True

    async def look_at_logits(self, model_id: str) -> list[dict[str, Any]]:
        """The phase and the health of the logits of a few steps, as the first rank has them; of a model without logits, nothing.

        Two steps of an idle engine: one reads, one writes. A busy one's are those of its requests as well.
        """
        if "generate" not in self.tasks:
            return []
        await self._engine.collective_rpc("begin_logits_probe")
        await self.is_sound(model_id)
        found: list[list[dict[str, Any]]] = await self._engine.collective_rpc("end_logits_probe")
        return found[0]

    async def begin_memory_trace(self) -> None:
        """Have every rank note what each step leaves free."""
        await self._engine.collective_rpc("begin_memory_trace")

    async def take_memory_trace(self) -> list[list[int]]:
        """By rank, MiB that were free at the end of each step since the last time; none where EngineCore is gone."""
        try:
            found: list[list[int]] = await self._engine.collective_rpc("take_memory_trace")
        except EngineDeadError:  # `died` tells
            return []
        return found

    async def sleep(self, level: int) -> None:
        """Free the device's memory, as Engine.sleep says."""
        await self._engine.sleep(level)
        self._level = level

    async def wake(self) -> None:
        """Serve again. What level 2 dropped is read from the files again."""
        if self._level == 2:
            await self._engine.wake_up(["weights"])
            await self._engine.collective_rpc("reload_weights")
            await self._engine.wake_up(["kv_cache"])
        else:
            await self._engine.wake_up()
        self._level = 0

    @property
    def can_sleep(self) -> bool:
        """Whether it was started so that it can."""
        return bool(self.config.model_config.enable_sleep_mode)

    @property
    def unfinished(self) -> int:
        """Requests that the engine has not finished, those just aborted not among them."""
        count: int = self._engine.get_num_unfinished_requests()
        return count

    @property
    def died(self) -> bool:
        """Whether EngineCore is gone. It does not come back."""
        errored: bool = self._engine.errored
        return errored

    @property
    def scores(self) -> bool:
        """Whether it says how well texts belong together."""
        return getattr(self.state, "serving_scores", None) is not None

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that fit into the KV cache."""
        cache = self.config.cache_config
        return int((cache.num_gpu_blocks or 0) * cache.block_size)

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer together that one request may have."""
        return int(self.config.model_config.max_model_len)

    @property
    def max_running(self) -> int:
        """Sequences that run at once."""
        return int(self.config.scheduler_config.max_num_seqs)

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        return bool(self.config.model_config.is_multimodal_model)

    def figures(self) -> dict[str, int]:
        """Of the model, as one rank holds it."""
        model, parallel = self.config.model_config, self.config.parallel_config
        tokens = self.kv_cache_tokens
        held_bytes = self.config.cache_config.kv_cache_memory_bytes or 0
        return {
            "vocab_size": model.get_vocab_size(),
            "hidden_size": model.get_hidden_size(),
            "num_layers": model.get_num_layers(parallel),
            "head_dim": model.get_head_size(),
            "num_kv_heads": model.get_num_kv_heads(parallel),
            "max_position_embeddings": getattr(
                model.hf_text_config, "max_position_embeddings", model.max_model_len
            ),
            "kv_bytes_per_token": held_bytes // tokens if tokens else 0,
            **_count_layers(getattr(model.hf_text_config, "layer_types", None) or ()),
        }

    async def rank_memory(self) -> list[dict[str, int]]:
        """MiB that are free, and that there are, as each rank sees its device."""
        found: list[dict[str, int]] = await self._engine.collective_rpc("describe_memory")
        return found

    def stop(self, timeout_s: float) -> None:
        """End EngineCore and its ranks; kill them after `timeout_s`. Blocks."""
        # It takes the end that it is told to make for a crash, and logs a traceback.
        logging.getLogger("vllm.v1.engine").setLevel(logging.CRITICAL)
        self._engine.shutdown(timeout=timeout_s)


def _count_layers(layer_types: Sequence[str]) -> dict[str, int]:
    """Of a hybrid, how many layers attend to all that was read, and how many keep a state of fixed size."""
    full = sum("full" in kind for kind in layer_types)
    linear = sum("linear" in kind or "mamba" in kind for kind in layer_types)
    return {"full_attention_layers": full, "linear_layers": linear} if linear else {}


Call = Callable[[Any, None], Awaitable[Answer]]
Find = Callable[[State], Call | None]


def _method(name: str, method: str) -> Find:
    def find(state: State) -> Call | None:
        serving = getattr(state, name, None)
        call: Call | None = getattr(serving, method, None)
        return call

    return find


# Fields of a message that `vllm_asked.plan_request` reads.
_CARRIED = dict.fromkeys(("reasoning_content", "refusal", "function_call"))


class Route:
    """One route: what is read, and which serving object answers.

    To add one: one row in ROUTES.

    Attributes:
        known: the fields that vLLM reads; of a chat, those of its objects too.
    """

    def __init__(self, request_type: Any, find: Find) -> None:
        self._adapter = TypeAdapter(request_type)
        self._forms = [TypeAdapter(form) for form in _forms(request_type)]
        self.find = find
        self.known: Known = {
            name: None
            for form in _forms(request_type) or (request_type,)
            for name in form.model_fields
        }
        if request_type is ChatCompletionRequest:
            # Its messages have OpenAI's types as well, with fields that nothing is made of.
            messages = {**read_known([CustomChatCompletionMessageParam]), **_CARRIED}
            self.known = {**read_known([request_type]), "messages": messages}

    def read(self, fields: Mapping[str, Any]) -> Any:
        """The request as vLLM's own type. Raises pydantic's ValidationError, a ValueError."""
        try:
            return self._adapter.validate_python(fields)
        except ValidationError as error:
            raise self._explain(fields) or error from None

    def _explain(self, fields: Mapping[str, Any]) -> ValidationError | None:
        """What is wrong with a request that may have several forms, in the form that lacks the fewest fields."""
        found = []
        for form in self._forms:
            try:
                form.validate_python(fields)
            except ValidationError as error:
                found.append(error)
        return min(found, key=_missing, default=None)


def _forms(request_type: Any) -> tuple[Any, ...]:
    """The types of a union, without what it is annotated with; empty: it is none."""
    if get_origin(request_type) is Annotated:
        return _forms(get_args(request_type)[0])
    return get_args(request_type)


def _missing(error: ValidationError) -> int:
    return sum(part["type"] == "missing" for part in error.errors())


ROUTES: Mapping[str, Route] = {
    "/v1/chat/completions": Route(
        ChatCompletionRequest, _method("openai_serving_chat", "create_chat_completion")
    ),
    "/v1/completions": Route(
        CompletionRequest, _method("openai_serving_completion", "create_completion")
    ),
    "/v1/responses": Route(
        ResponsesRequest, _method("openai_serving_responses", "create_responses")
    ),
    "/v1/embeddings": Route(EmbeddingRequest, _method("serving_embedding", "__call__")),
    "/v1/score": Route(ScoreRequest, _method("serving_scores", "__call__")),
    "/v1/rerank": Route(RerankRequest, _method("serving_scores", "__call__")),
    "/tokenize": Route(TokenizeRequest, _method("serving_tokenization", "create_tokenize")),
}


def read_error(error: Exception) -> Refusal:
    """What an error of vLLM's says to a client."""
    if isinstance(error, EngineDeadError):
        return Refusal(died=True, message="EngineCore is gone")
    if isinstance(error.__context__, GenerationError):  # vLLM stumbled over its own error
        error = error.__context__
    if isinstance(error, ValidationError):
        return read_validation(error.errors())
    if isinstance(error, NotImplementedError):
        return Refusal(status=400, message=str(error))
    if isinstance(error, _MEDIA_ERRORS):
        return Refusal(status=400, message=f"its media cannot be read: {error}")
    return read_error_answer(create_error_response(error))


def read_error_answer(answer: Any) -> Refusal:
    """What an ErrorResponse says."""
    found = answer.error
    return Refusal(status=found.code, message=found.message, param=found.param)


def is_error_answer(answer: Answer) -> bool:
    """Whether a serving object answered with an error instead of raising it."""
    return isinstance(answer, ErrorResponse)


def is_stream(answer: Answer) -> bool:
    """Whether the answer comes piece by piece."""
    return hasattr(answer, "__aiter__")


def read_answer(answer: Answer) -> Any:
    """A whole answer as JSON values."""
    if isinstance(answer, Response):
        return json.loads(bytes(answer.body))
    return answer.model_dump(mode="json", by_alias=True)


def write_event(piece: Any) -> bytes:
    """One piece of a stream as one SSE event: text already, or an event of the Responses API."""
    if isinstance(piece, str):
        return piece.encode()
    return f"event: {piece.type}\ndata: {piece.model_dump_json(by_alias=True)}\n\n".encode()
