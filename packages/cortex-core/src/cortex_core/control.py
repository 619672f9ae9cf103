# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a neuron, and the answers: load, unload, where. Pure."""

from typing import Any

import msgspec

from cortex_core.node import Progress


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a model is to be run. Every field but `harness` may be None: the neuron then decides.

    Attributes:
        harness: kind of engine: `vllm` or `echo`.
        quant: the quantization asked for, or the name of a file of the repository.
        tensor_parallel: ranks, each on a device of its own.
        devices: indices or UUIDs of the devices to use.
        max_model_len: tokens of prompt and answer together.
        kv_cache_mb: MiB of KV cache per device.
        dtype: as vLLM names them.
        tool_parser, reasoning_parser: as vLLM names them; None: chosen from tokenizer and template.
        chat_template: the template itself (Jinja); paths come only from neuron.toml.
        lora: adapter name to repository.
        engine_args: further engine arguments, from an allow-list.
    """

    harness: str = "vllm"
    quant: str | None = None
    tensor_parallel: int | None = None
    devices: list[int | str] | None = None
    max_model_len: int | None = None
    kv_cache_mb: int | None = None
    dtype: str | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    lora: dict[str, str] | None = None
    engine_args: dict[str, Any] | None = None


class ModelSpec(EngineSpec, frozen=True, kw_only=True, omit_defaults=True):
    """A model and how it is to be run.

    Attributes:
        model_id: `scheme:org/name`, or bare.
    """

    model_id: str


# A field that this neuron does not know could change what is loaded or how, so in requests unknown fields are errors. What is
# at its default is left out, so that an older neuron meets a new field only where somebody means it.
class LoadRequest(
    ModelSpec, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Body of POST /models/load. `wait=False`: answer 202 at once, and go on loading."""

    wait: bool = True

    def spec(self) -> ModelSpec:
        """The spec alone."""
        fields = {name: getattr(self, name) for name in ModelSpec.__struct_fields__}
        return ModelSpec(**fields)


class LoadAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer of load: `status` is a ModelStatus; `already`: nothing had to be done.

    `progress` is how far it is, where the answer came before the end; None: it is loaded.
    """

    status: str
    model_id: str
    already: bool = False
    progress: Progress | None = None


class MoveRequest(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Body of unload, sleep, wake and reload. `force`: end running work instead of draining."""

    model_id: str
    force: bool = False


class MoveAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer of unload, sleep, wake and reload. `status` is a ModelStatus, or `unloaded`; `already`: nothing had to be done.

    A model that could not be put to sleep, or has too many sleepers beside it, is unloaded instead.
    """

    status: str
    model_id: str
    already: bool = False


class PlanRequest(
    ModelSpec, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Body of POST /models/plan: a spec, and what is known of its size elsewhere.

    Attributes:
        vram_mb: MiB of the whole model; used where it was never loaded here and its files are not here either.
    """

    vram_mb: int | None = None

    def spec(self) -> ModelSpec:
        """The spec alone."""
        fields = {name: getattr(self, name) for name in ModelSpec.__struct_fields__}
        return ModelSpec(**fields)


class DevicePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a model would take of one device. `free_mb` None: the driver does not tell; `short_mb` 0: it is enough."""

    index: int
    needed_mb: int
    free_mb: int | None
    total_mb: int
    short_mb: int = 0


class PlanAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model would fit now, and what would have to go. Nothing is loaded, fetched or held for it.

    Attributes:
        fits: it would load now, or is up already, as asked.
        already: it is resident, and comes or is up.
        source: where the figures come from: `measured` here before, `estimated` from its files, `given` by who
            asked; `none`: it needs nothing, or nothing is known.
        devices: those it would get, in the order of its ranks.
        kv_cache_mb: MiB of KV cache per rank that it would be given; None: it has none.
        max_model_len: tokens of context that it would be lowered or set to; None: the model's own, or what the
            engine finds to fit.
        would_evict: models to unload or put to sleep so that it fits, the least recently used first, those with
            work in flight only where idle ones are not enough.
        busy: those of them that have work in flight, or are coming up.
        kind: why it can never be loaded here as asked, as LoadRefusedError says; None: it could, now or later.
        reason: why it does not fit; None: it does.
        suggestion: what to change; may be empty.
    """

    model_id: str
    fits: bool
    already: bool = False
    source: str = "none"
    devices: list[DevicePlan] = []
    kv_cache_mb: int | None = None
    max_model_len: int | None = None
    would_evict: list[str] = []
    busy: list[str] = []
    kind: str | None = None
    reason: str | None = None
    suggestion: str = ""


class CountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /models/count: what would be loaded, and the body of a `/tokenize`. Answered as that is.

    The model need not be up: its files are enough, and nothing is loaded or fetched. Without them it is `model_loading`.
    """

    spec: ModelSpec
    request: msgspec.Raw


class EndpointAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Where inference for a model is served."""

    url: str


def spec_differences(a: ModelSpec, b: ModelSpec) -> list[str]:
    """The fields in which two specs of one model differ, in their order."""
    names = ModelSpec.__struct_fields__
    return [name for name in names if name != "model_id" and getattr(a, name) != getattr(b, name)]
