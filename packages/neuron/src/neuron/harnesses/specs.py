# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a spec, whatever the harness? Pure."""

from collections.abc import Mapping

from cortex_core.control import ModelSpec, spec_differences
from cortex_core.errors import LoadRefusedError
from cortex_core.sources import read_model_name

MAX_ID_LENGTH = 512
_COUNTS = ("tensor_parallel", "max_model_len", "kv_cache_mb")
_ENGINE_COUNTS = ("max_num_seqs", "max_num_batched_tokens")


def check_spec(spec: ModelSpec) -> None:
    """Refuse what no engine can be asked.

    Raises:
        LoadRefusedError: `invalid_spec`. The caller's fault.
    """
    if not spec.model_id or len(spec.model_id) > MAX_ID_LENGTH or not spec.model_id.isprintable():
        raise _refused(spec, f"a model_id is 1 to {MAX_ID_LENGTH} characters that can be printed")
    counts = {name: getattr(spec, name) for name in _COUNTS}
    args = spec.engine_args or {}
    counts |= {f"engine_args.{name}": args.get(name) for name in _ENGINE_COUNTS}
    for name, value in counts.items():
        if isinstance(value, int) and value < 1:
            raise _refused(spec, f"{name} is {value}, and must be at least 1")


def conflicts(asked: ModelSpec, there: ModelSpec, decided: Mapping[str, object]) -> list[str]:
    """The fields by which a model that is resident is not what is asked for.

    Args:
        asked: what is to be loaded.
        there: what was asked for when it was loaded.
        decided: fields as they came to be, for those that this left open.
    """
    # Who names the source looks for it by that name, and would not find it.
    named = asked.model_id != there.model_id and read_model_name(asked.model_id).scheme is not None
    differing = [
        name
        for name in spec_differences(asked, there)
        if not (
            _is_open(there, name)
            and (_is_open(asked, name) or getattr(asked, name) == decided.get(name))
        )
    ]
    return [*(["model_id"] if named else []), *differing]


def _is_open(spec: ModelSpec, name: str) -> bool:
    return getattr(spec, name) in (None, {})


def _refused(spec: ModelSpec, reason: str) -> LoadRefusedError:
    return LoadRefusedError(
        model=spec.model_id[:MAX_ID_LENGTH],
        load_kind="invalid_spec",
        reason=reason,
        suggestion="Correct the spec.",
    )
