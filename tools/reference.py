# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes docs/reference from the code: every setting, metric, error and command. `--check` only compares.

The words are those of the docstrings: a setting is told by its line under `Attributes:`, an error by its class.
"""

import difflib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from importlib import import_module
from typing import Any

import click
import msgspec
import tree
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from cortex_core.errors import CortexError
from cortex_core.node import DeviceHealth
from cortex_gateway import metrics as gateway_metrics
from cortex_gateway.fleet import Fleet
from neuron import metrics as neuron_metrics
from neuron.measuring import Measuring
from neuron.residents import Residents
from neuron.traffic import Traffic

REQUIRED = "required"
FOLDER = tree.ROOT / "docs/reference"
NOTE = "<!-- Written by tools/reference.py from the code: change it there, then `tools/nox -s docs -- --write`. -->"
CONFIGS = {
    "cortex.toml": ("cortex_gateway.config", "Config", "The gateway's. Read from `/etc/cortex/cortex.toml` or `--config`; "
                    "each setting may be overridden by `CORTEX_…`, nested by `__`: `CORTEX_GATEWAY__LISTEN`."),
    "models.toml": ("cortex_core.catalogue", "Catalogue", "What may be asked for. Beside `cortex.toml`, or where its "
                    "`models_config` says; may be missing."),
    "neuron.toml": ("neuron.config", "Config", "The daemon's. Read from `/etc/neuron/neuron.toml` or `--config`; "
                    "overridden by `NEURON_…`."),
}  # fmt: skip
METRICS: dict[str, Callable[[], CollectorRegistry]] = {
    "The gateway's, at `GET /metrics` of its metrics port:": lambda: (
        gateway_metrics.Metrics(Fleet([]))._registry
    ),
    "A neuron's, at its `GET /metrics`:": lambda: (
        neuron_metrics.Metrics(
            Residents(), typing.cast(Measuring, _NothingMeasured()), Traffic()
        )._registry
    ),
}
COMMANDS = {"cortex": ("cortex_cli.command", "main"), "neuron": ("neuron.command", "main")}


def main() -> None:
    """Write the pages, or with `--check` tell which differ."""
    differing = []
    for name, make in PAGES.items():
        path = FOLDER / name
        wanted = f"{NOTE}\n\n{make().strip()}\n"
        found = path.read_text() if path.exists() else ""
        if found != wanted:
            differing.append(
                "".join(
                    difflib.unified_diff(
                        found.splitlines(True), wanted.splitlines(True), name, "code"
                    )
                )
            )
            if "--check" not in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(wanted)
    if differing and "--check" in sys.argv:
        sys.exit(
            "\n".join(
                [
                    *differing,
                    "docs/reference is not what the code says: tools/nox -s docs -- --write",
                ]
            )
        )


def config_page() -> str:
    """Every setting of the three files."""
    parts = [
        "# Settings",
        "Unknown keys are errors that name the nearest known one. Example files are at the repository's root.",
    ]
    for name, (module, struct, intro) in CONFIGS.items():
        kind = getattr(import_module(module), struct)
        parts += [f"## {name}", intro, *_tables(kind, "")]
    return "\n\n".join(parts)


def _tables(kind: type[msgspec.Struct], path: str) -> Iterator[str]:
    """The settings of a Struct, then those of the Structs in it, each under its TOML header."""
    inner = []
    rows = []
    for field in msgspec.structs.fields(kind):
        below, header = _below(field.type, f"{path}{field.encode_name}")
        if below:
            inner.append((below, header))
        else:
            rows.append(
                (
                    f"`{field.encode_name}`",
                    _type(field.type),
                    _default(field),
                    _meaning(kind, field.name),
                )
            )
    if rows:
        rows.sort(key=lambda row: row[2] != REQUIRED)
        yield _table(("key", "type", "default", "meaning"), rows)
    for below, header in inner:
        yield f"### `{header}`"
        yield _first_paragraph(below)
        yield from _tables(below, f"{header.strip('[]')}.")


def _below(kind: Any, path: str) -> tuple[type[msgspec.Struct] | None, str]:
    """The Struct that a key holds, and how TOML writes its header; None: it holds a plain value."""
    kind = _without_none(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind, f"[{path}]"
    arguments = [_without_none(argument) for argument in typing.get_args(kind)]
    if arguments and isinstance(arguments[-1], type) and issubclass(arguments[-1], msgspec.Struct):
        if typing.get_origin(kind) is dict:
            return arguments[-1], f"[{path}.NAME]"
        return arguments[-1], f"[[{path}]]"
    return None, ""


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [argument for argument in typing.get_args(kind) if argument is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "any"}


def _type(kind: Any) -> str:
    kind = _without_none(kind)
    arguments = [
        _type(argument) for argument in typing.get_args(kind) if argument is not type(None)
    ]
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(kind))
    if origin is typing.Annotated:
        return arguments[0]
    if origin is list:
        return f"list of {arguments[0]}"
    if origin is dict:
        return f"table of {arguments[1]}"
    if arguments:
        return " or ".join(dict.fromkeys(arguments))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(f"`{member.value}`" for member in kind)
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is msgspec.NODEFAULT:
        return REQUIRED
    return (
        "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"
    )


def _meaning(kind: type, name: str) -> str:
    """The line of a field under `Attributes:`, in the class itself or the one it inherits from."""
    for owner in kind.__mro__:
        for names, text in _attributes(owner.__dict__.get("__doc__") or ""):
            if name in names:
                return text.replace("None:", "absent:")  # TOML has no None
    return ""


def _attributes(doc: str) -> Iterator[tuple[list[str], str]]:
    _, _, section = inspect.cleandoc(doc).partition("Attributes:\n")
    for entry in re.findall(r"^    (\S.*(?:\n      .*)*)", section, re.MULTILINE):
        names, _, text = entry.partition(": ")
        yield names.replace(" ", "").split(","), " ".join(text.split())


def _first_paragraph(kind: type) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def errors_page() -> str:
    """Every error by status, with its sentence."""
    kinds = sorted(_errors(CortexError), key=lambda kind: (kind.status, kind.code))
    rows = [
        (str(kind.status), f"`{kind.code}`", _retry(kind), _first_paragraph(kind), kind.says)
        for kind in kinds
        if not kind.__subclasses__()
    ]
    return "\n\n".join(
        [
            "# Errors",
            'Every answer that is not 2xx is `{"error": {"message", "type", "code", "param", …facts}}`, or Anthropic\'s envelope '
            "with the same code. `Retry-After` means that the same request may work later; without it, it will not.",
            _table(("status", "code", "Retry-After", "when", "says"), rows),
        ]
    )


def _errors(kind: type[CortexError]) -> Iterator[type[CortexError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _errors(child)


def _retry(kind: type[CortexError]) -> str:
    seconds = kind.default_retry_after_s
    return "" if seconds is None else f"{seconds:.0f} s"


def cli_page() -> str:
    """Every command with its options, as its own help tells."""
    parts = [
        "# Commands",
        "Exit codes: 0 it went well; 1 something is not reachable, or failed; 2 wrong usage or a wrong config.",
    ]
    for program, (module, name) in COMMANDS.items():
        parts += _helps(getattr(import_module(module), name), program)
    return "\n\n".join(parts)


def _helps(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path, terminal_width=100, **command.context_settings)
    yield f"## `{path}`\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below:
                yield from _helps(below, f"{path} {name}")


def metrics_page() -> str:
    """Every metric of both daemons."""
    parts = ["# Metrics"]
    for intro, make in METRICS.items():
        parts += [
            intro,
            _table(("metric", "kind", "labels", "tells"), list(_series(make()))),
        ]
    return "\n\n".join(parts)


class _NothingMeasured:
    """A machine that nothing is known of: what it would measure has a name all the same."""

    host_ram_free_mb = 0

    def devices(self) -> list[DeviceHealth]:
        """None."""
        return []


def _series(registry: CollectorRegistry) -> Iterator[tuple[str, ...]]:
    for collector in registry._collector_to_names:
        # Counters tell of themselves without a value; what is read off its owner only by being read.
        tell: Callable[[], Iterable[Metric]] = getattr(collector, "describe", collector.collect)
        for family in tell():
            labels = getattr(family, "_labelnames", getattr(collector, "_labelnames", ()))
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield f"`{name}`", family.type, ", ".join(labels) or "none", family.documentation


PAGES: dict[str, Callable[[], str]] = {
    "config.md": config_page,
    "metrics.md": metrics_page,
    "errors.md": errors_page,
    "cli.md": cli_page,
}


if __name__ == "__main__":
    main()
