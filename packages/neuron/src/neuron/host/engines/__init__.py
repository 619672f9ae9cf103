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


def import_engine(harness: str) -> "type[Engine]":
    """The class of a harness's engine; its module is imported now."""
    module, _, name = ENGINES[harness].partition(":")
    engine: type[Engine] = getattr(importlib.import_module(module), name)
    return engine
