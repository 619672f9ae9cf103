# SPDX-License-Identifier: GPL-3.0-or-later
"""Which fields a type of vLLM's has, and those of the objects in these. Pure."""

from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from neuron.host.engines.vllm_asked import Known

_PLAIN = (str, int, float, bool, NoneType)
_HOLDERS = (Union, UnionType, list, Iterable)


def read_known(
    kinds: Iterable[Any], above: frozenset[Any] = frozenset()
) -> dict[str, Known | None]:
    """The fields that objects of these types have, together.

    Args:
        kinds: typed dicts, and pydantic's models.
        above: types that these stand in.
    """
    hints: dict[str, list[Any]] = {}
    for kind in kinds:
        for name, hint in _read_fields(kind):
            hints.setdefault(name, []).append(hint)
    return {name: _read_inner(found, above | {*kinds}) for name, found in hints.items()}


def _read_inner(hints: list[Any], above: frozenset[Any]) -> Known | None:
    """What is known of the objects in a field; None: they may be anything."""
    options = {option for hint in hints for option in _options(hint)}
    if not options or not all(map(_has_fields, options)) or above & options:
        return None
    return read_known(options, above)


def _options(hint: Any) -> Iterator[Any]:
    """The types that a value may have, or that of a list the values may have, without those that are no objects."""
    origin = get_origin(hint)
    if origin is Annotated:
        yield from _options(get_args(hint)[0])
    elif origin in _HOLDERS:
        for part in get_args(hint):
            yield from _options(part)
    elif origin is not Literal and hint not in _PLAIN:
        yield hint


def _has_fields(kind: Any) -> bool:
    return _is_typed_dict(kind) or hasattr(kind, "model_fields")


def _is_typed_dict(kind: Any) -> bool:
    """Of typing's or of typing_extensions': these two take no notice of each other."""
    return hasattr(kind, "__total__")


def _read_fields(kind: Any) -> Iterator[tuple[str, Any]]:
    if _is_typed_dict(kind):
        yield from get_type_hints(kind).items()
    else:
        yield from (
            (field.alias or name, field.annotation) for name, field in kind.model_fields.items()
        )
