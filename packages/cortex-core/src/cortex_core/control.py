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


# A field this neuron does not know could change what is loaded, so here unknown fields are errors.
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


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of unload, sleep and wake. `force`: end running work instead of draining."""

    model_id: str
    force: bool = False


class UnloadAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer of unload; `already`: it was not there."""

    status: str
    model_id: str
    already: bool = False


class EndpointAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Where inference for a model is served."""

    url: str


def spec_differences(a: ModelSpec, b: ModelSpec) -> list[str]:
    """The fields in which two specs of one model differ, in their order."""
    names = ModelSpec.__struct_fields__
    return [name for name in names if name != "model_id" and getattr(a, name) != getattr(b, name)]
