# SPDX-License-Identifier: GPL-3.0-or-later
"""How a model id is written: `scheme:org/name`, or bare. Pure."""

import re
from typing import NamedTuple

_SCHEME = re.compile(r"([a-z][a-z0-9_-]*):(?!/)(.+)", re.DOTALL)


class ModelName(NamedTuple):
    """A model id in its parts. `scheme` is None where the neuron's default source applies."""

    scheme: str | None
    bare: str


def read_model_name(model_id: str) -> ModelName:
    """Split `scheme:org/name`; a bare id keeps all of its colons (`qwen2.5:7b` has no slash: it is bare).

    A scheme is lower case and is followed by something that holds a slash, as repositories do; without
    that rule every tag-like id would name a source that nobody configured.
    """
    match = _SCHEME.fullmatch(model_id)
    if match and "/" in match.group(2):
        return ModelName(match.group(1), match.group(2))
    return ModelName(None, model_id)
