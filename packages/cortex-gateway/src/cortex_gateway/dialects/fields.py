# SPDX-License-Identifier: GPL-3.0-or-later
"""What the fields of a client's request hold, and which of them go no further. Pure."""

import re
from collections.abc import Iterable
from typing import Any, TypeVar

from cortex_core.errors import InvalidRequestBodyError

T = TypeVar("T")

_WORDS: dict[type, str] = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    list: "an array",
    dict: "an object",
}
# The names go into a response header: a client must not be able to write its own there, nor fill it up.
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_DROPPED_NAMES = 32
# No field has this name: there was more than a header should hold.
AND_MORE = "..."
# What says nothing: the last is that the model itself called a tool, and no program, as is always so here.
_NOTHING: tuple[Any, ...] = (None, [], {"type": "direct"})


class Dropped:
    """Names of what cannot be carried, each once, in the order met; `x-cortex-dropped` lists them."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._has_more = False

    def note(self, *path: str) -> None:
        """One field or block that goes no further; a part of the path that is no plain word becomes `other`."""
        name = ".".join(part if _SAFE.fullmatch(part) else "other" for part in path)
        if len(self._names) < MAX_DROPPED_NAMES:
            self._names[name] = None
        elif name not in self._names:
            self._has_more = True

    def note_rest(self, fields: dict[str, Any], carried: Iterable[str], *path: str) -> None:
        """Every field that holds something and is not among the carried ones."""
        for name in fields.keys() - set(carried):
            if fields[name] not in _NOTHING:
                # Claude Code moves this one from block to block each turn: where it stood says nothing.
                self.note(name) if name == "cache_control" else self.note(*path, name)

    @property
    def names(self) -> list[str]:
        """The names, sorted: a set's order differs from run to run. Last a mark, where there were too many."""
        return [*sorted(self._names), *([AND_MORE] if self._has_more else [])]


def invalid(path: str, reason: str) -> InvalidRequestBodyError:
    """The error that names the field at fault."""
    return InvalidRequestBodyError(reason=f"`{path}` {reason}", param=path)


def require(value: object, kind: type[T], path: str) -> T:
    """The value, known to be of a JSON kind. An integer is never a truth value.

    Raises:
        InvalidRequestBodyError: it is of another kind, or missing. The client's fault.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise invalid(path, "is missing" if value is None else f"must be {_WORDS[kind]}")
    return value


def optional(value: object, kind: type[T], path: str) -> T | None:
    """As `require`; None where the client sent nothing or null."""
    return None if value is None else require(value, kind, path)
