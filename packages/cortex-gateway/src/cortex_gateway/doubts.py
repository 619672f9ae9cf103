# SPDX-License-Identifier: GPL-3.0-or-later
"""What in the configuration is allowed, and likely not meant? Pure."""

from collections.abc import Iterator

from cortex_core.catalogue import Catalogue
from cortex_gateway.config import Config


def find_doubts(config: Config, catalogue: Catalogue) -> list[str]:
    """Names that lead nowhere as far as the files tell, each in a clause. A node may know better: none is a mistake."""
    return [*_undeclared(config, catalogue), *_nowhere(config, catalogue)]


def _undeclared(config: Config, catalogue: Catalogue) -> Iterator[str]:
    known = {name for model in catalogue.models for name in (model.id, *(model.lora or {}))}
    ends = "which no catalogue declares: it is served where a node has it"
    for alias, target in catalogue.aliases.items():
        if target not in known:
            yield f"the alias '{alias}' names '{target}', {ends}"
    default = config.default_model
    if default is not None and default not in known and default not in catalogue.aliases:
        yield f"`default_model` is '{default}', {ends}"


def _nowhere(config: Config, catalogue: Catalogue) -> Iterator[str]:
    nodes = [neuron.name for neuron in config.neurons]
    for model in catalogue.models:
        for name in model.pinned_on:
            if name not in nodes:
                known = ", ".join(nodes) or "(none)"
                yield f"the model '{model.id}' is pinned on '{name}', which is none of the nodes {known}"
