# SPDX-License-Identifier: GPL-3.0-or-later
"""What does an OpenAI-compatible server say that it serves, in the fleet's words? Pure.

Its models are up as long as it answers, and nobody loads, unloads or moves them: their harness is one that no model
of a catalogue asks for, so that none is ever placed there.
"""

import msgspec

from cortex_core.discovery import Discovery
from cortex_core.node import Limits, ModelState, ModelStatus
from cortex_core.wire import WIRE_VERSION

HARNESS = "openai"


class _Meta(msgspec.Struct, frozen=True):
    n_ctx: int | None = None
    n_ctx_train: int | None = None


class _Entry(msgspec.Struct, frozen=True):
    """An entry as vLLM (`max_model_len`), llama-server (`meta`) and hosted servers (`context_length`) write it."""

    id: str
    max_model_len: int | None = None
    context_length: int | None = None
    meta: _Meta | None = None


class OpenAIModels(msgspec.Struct, frozen=True):
    """The answer of GET /v1/models. Some write null where they have none."""

    data: list[_Entry] | None = None


def read_states(told: OpenAIModels) -> tuple[ModelState, ...]:
    """Its models, each once."""
    entries = {entry.id: entry for entry in told.data or []}
    return tuple(
        ModelState(
            id=entry.id,
            harness=HARNESS,
            status=ModelStatus.LOADED,
            limits=Limits(context=_context(entry)),
        )
        for entry in entries.values()
    )


def describe(endpoint: str) -> Discovery:
    """Such a server as a machine: it has no device that a model could be placed on."""
    return Discovery(hostname=endpoint, os="", kernel="", harnesses=[HARNESS], wire=WIRE_VERSION)


def has_lifecycle(state: ModelState) -> bool:
    """Whether a model can be loaded, unloaded and moved where it is."""
    return state.harness != HARNESS


def _context(entry: _Entry) -> int | None:
    meta = entry.meta or _Meta()
    return entry.max_model_len or entry.context_length or meta.n_ctx or meta.n_ctx_train
