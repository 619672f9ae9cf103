# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engines a host can run: harness to class, imported on use, since one's libraries are never another's."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuron.host.engine import Engine

ENGINES = {
    "vllm": "neuron.host.engines.vllm:VllmEngine",
    "echo": "neuron.host.engines.echo:EchoEngine",
}
# Of each, what counts tokens without the engine.
COUNTERS = {
    "vllm": "neuron.host.engines.vllm_counter:VllmCounter",
    "echo": "neuron.host.engines.echo:EchoCounter",
}


def import_engine(harness: str, *, counts: bool = False) -> "type[Engine]":
    """The class of a harness's engine, or of what only counts tokens; its module is imported now."""
    module, _, name = (COUNTERS if counts else ENGINES)[harness].partition(":")
    engine: type[Engine] = getattr(importlib.import_module(module), name)
    return engine
