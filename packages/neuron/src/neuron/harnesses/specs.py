# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a spec, whatever the harness? Pure."""

from cortex_core.control import ModelSpec
from cortex_core.errors import LoadRefusedError

MAX_ID_LENGTH = 512
_COUNTS = ("tensor_parallel", "max_model_len", "kv_cache_mb")


def check_spec(spec: ModelSpec) -> None:
    """Refuse what no engine can be asked.

    Raises:
        LoadRefusedError: `invalid_spec`. The caller's fault.
    """
    if not spec.model_id or len(spec.model_id) > MAX_ID_LENGTH or not spec.model_id.isprintable():
        raise _refused(spec, f"a model_id is 1 to {MAX_ID_LENGTH} characters that can be printed")
    for name in _COUNTS:
        value = getattr(spec, name)
        if value is not None and value < 1:
            raise _refused(spec, f"{name} is {value}, and must be at least 1")


def _refused(spec: ModelSpec, reason: str) -> LoadRefusedError:
    return LoadRefusedError(
        model=spec.model_id[:MAX_ID_LENGTH],
        load_kind="invalid_spec",
        reason=reason,
        suggestion="Correct the spec.",
    )
