# SPDX-License-Identifier: GPL-3.0-or-later
"""From a TOML file and the environment to a daemon's Config; the only reader of both.

Every mistake is an OperatorError that names the file, the line where it can be told, the key, and the
nearest known one.
"""

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cortex_core import logs
from cortex_core.errors import OperatorError

log = logs.get(__name__)

T = TypeVar("T")

_PATH_IN_MESSAGE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)


def read_config(
    kind: type[T],
    path: Path | None,
    *,
    prefix: str = "",
    environ: Mapping[str, str] | None = None,
) -> T:
    """Read a Struct from a TOML file, overridden by the environment.

    Args:
        kind: the Struct; its unknown keys are errors at every depth.
        path: the file; None: defaults and environment alone.
        prefix: such as `CORTEX_`; variables are nested by `__`. Empty: no environment.
        environ: None: the process's own.

    Raises:
        OperatorError: the file is missing, unreadable or not TOML, a key is unknown, a value does not fit.
    """
    text = _read_text(path) if path else ""
    where = str(path) if path else "the environment"
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OperatorError(message=f"{where} is not valid TOML: {error}") from None
    _refuse_unknown_keys(kind, data, where, text)
    if prefix:
        _apply_environment(kind, data, prefix, os.environ if environ is None else environ)
    try:
        return msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError as error:
        raise OperatorError(message=_explain(error, kind, where, text)) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise OperatorError(message=f"The file {path} does not exist.") from None
    except UnicodeDecodeError:
        raise OperatorError(message=f"The file {path} is not UTF-8 text.") from None
    except OSError as error:
        raise OperatorError(message=f"The file {path} cannot be read: {error.strerror}.") from None


def _refuse_unknown_keys(kind: object, data: object, where: str, text: str) -> None:
    for path, known in _unknown_keys(kind, data, ()):
        line = _line_of(text, path)
        place = f"{where}, line {line}" if line else where
        raise OperatorError(
            message=f"{place}: unknown key `{_dotted(path)}`. {_nearest(path[-1], known)}"
        )


def _unknown_keys(
    kind: object, data: object, path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], list[str]]]:
    """Each key that the types do not know, with what is known in its place."""
    kind = _without_none(kind)
    if isinstance(data, list):
        (item,) = typing.get_args(kind) or (object,)
        for index, value in enumerate(data):
            yield from _unknown_keys(item, value, (*path, index))
    elif isinstance(data, dict) and _is_struct(kind):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        for key, value in data.items():
            if key not in fields:
                yield (*path, key), list(fields)
            else:
                yield from _unknown_keys(fields[key], value, (*path, key))
    elif isinstance(data, dict) and typing.get_origin(kind) is dict:
        for key, value in data.items():
            yield from _unknown_keys(typing.get_args(kind)[1], value, (*path, key))


def _without_none(kind: object) -> object:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return rest[0] if len(rest) == 1 else object
    return kind


def _is_struct(kind: object) -> typing.TypeGuard[type[msgspec.Struct]]:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _apply_environment(
    kind: object, data: dict[str, Any], prefix: str, environ: Mapping[str, str]
) -> None:
    """Put `PREFIX_A__B=value` at data["a"]["b"].

    A name with `__` was meant for us, so an unknown one is an error. One without may belong to somebody
    else (a container platform sets `CORTEX_PORT` for a service called cortex): it is only told.
    """
    for variable, value in sorted(environ.items()):
        if not variable.startswith(prefix):
            continue
        keys = variable.removeprefix(prefix).lower().split("__")
        known = _keys_at(kind, keys[:-1])
        if keys[-1] in known:
            _put(data, keys, _read_value(variable, value))
        elif len(keys) > 1:
            raise OperatorError(
                message=f"Environment variable {variable}: unknown key `{'.'.join(keys)}`. {_nearest(keys[-1], known)}"
            )
        else:
            log.warning("environment variable ignored", variable=variable, reason="unknown key")


def _keys_at(kind: object, keys: list[str]) -> list[str]:
    found = _type_at(kind, keys)
    return (
        [field.encode_name for field in msgspec.structs.fields(found)] if _is_struct(found) else []
    )


def _type_at(kind: object, path: Iterable[str | int]) -> object:
    """Of what is at `path`; None: nothing can be."""
    for part in path:
        kind = _without_none(kind)
        if _is_struct(kind):
            kind = {f.encode_name: f.type for f in msgspec.structs.fields(kind)}.get(str(part))
        elif typing.get_origin(kind) is (list if isinstance(part, int) else dict):
            kind = typing.get_args(kind)[-1]
        else:
            return None
    return _without_none(kind)


def _put(data: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
    data[keys[-1]] = value


def _read_value(variable: str, text: str) -> object:
    """A list or table is written as in TOML; anything else is taken as it stands and converted later."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise OperatorError(
            message=f"Environment variable {variable} is not a TOML list or table: {error}"
        ) from None


def _explain(error: msgspec.ValidationError, kind: object, where: str, text: str) -> str:
    match = _PATH_IN_MESSAGE.match(str(error))
    what, raw = (match["what"], match["path"] or "") if match else (str(error), "")
    path: list[str | int] = [
        int(index) if index else key for key, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", raw)
    ]
    # What is wrong between two parts of a file says itself where.
    path += getattr(error.__cause__, "path", ())
    missing = re.match(r"Object missing required field `(\w+)`", what)
    line = _line_of(text, tuple(path))
    place = f"{where}, line {line}" if line else where
    if path:
        place += f": `{_dotted(tuple(path))}`"
    if missing:
        return f"{place} lacks the key `{missing[1]}`."
    allowed = _type_at(kind, path)
    if typing.get_origin(allowed) is typing.Literal:
        what += f", which is none of {', '.join(map(str, typing.get_args(allowed)))}"
    return f"{place}: {what}."


def _dotted(path: tuple[str | int, ...]) -> str:
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def _nearest(key: str | int, known: list[str]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Known here: {', '.join(known)}." if known else "No keys are known here."


def _line_of(text: str, path: tuple[str | int, ...]) -> int | None:
    """The line where the value at `path` is written, or its nearest enclosing table; None: not found.

    A scan of headers and keys, which is exact for files written one key per line; the parser of the
    standard library keeps no positions.
    """
    counts: dict[str, int] = {}
    table = ""
    best: tuple[int, int] | None = None  # (how much of the path it covers, line)
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped.startswith("["):
            name = stripped.strip("[]").split("]")[0].strip()
            if stripped.startswith("[["):
                counts[name] = counts.get(name, -1) + 1
                name = f"{name}[{counts[name]}]"
            table = name
            written = table
        elif "=" in stripped and not stripped.startswith("#"):
            key = stripped.split("=", 1)[0].strip().strip('"')
            written = f"{table}.{key}" if table else key
        else:
            continue
        best = _better(best, written, _dotted(path), number)
    return best[1] if best else None


def _better(
    best: tuple[int, int] | None, written: str, wanted: str, number: int
) -> tuple[int, int] | None:
    covers = wanted == written or wanted.startswith((f"{written}.", f"{written}["))
    if covers and (best is None or len(written) > best[0]):
        return len(written), number
    return best
