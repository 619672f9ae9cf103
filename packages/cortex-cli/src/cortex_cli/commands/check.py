# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex check`: would a daemon start with this file?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from cortex_cli import installed
from cortex_core.catalogue import Catalogue
from cortex_core.config import read_config
from cortex_core.errors import OperatorError


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of file.

    Attributes:
        stem: how its name begins.
        tables: top-level keys that only it has.
        config: gives the Struct it is read into.
        title: what it is called.
    """

    stem: str
    tables: frozenset[str]
    config: Callable[[], type[Any]]
    title: str


KINDS = {
    "gateway": Kind(
        stem="cortex",
        tables=frozenset(
            {"gateway", "neurons", "loading", "eviction", "poll", "fleet", "models_config"}
        ),
        config=lambda: installed.load("cortex_gateway.config", "Config", "helexa-cortex-gateway"),
        title="gateway configuration",
    ),
    "catalogue": Kind(
        stem="models",
        tables=frozenset({"models", "aliases", "fallbacks"}),
        config=lambda: Catalogue,
        title="model catalogue",
    ),
    "neuron": Kind(
        stem="neuron",
        tables=frozenset({"harness", "harnesses", "default_models", "listen", "port", "secret"}),
        config=lambda: installed.load("neuron.config", "Config", "helexa-neuron"),
        title="neuron configuration",
    ),
}


@click.command("check")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--kind", type=click.Choice(list(KINDS)), help="What the file is; else told by name or content."
)
def command(config: Path, kind: str | None) -> None:
    """Check a cortex.toml, models.toml or neuron.toml: as the daemon would read it, without the environment.

    Of a gateway configuration the catalogue that it names is checked too, and what is likely not meant is told.
    """
    name = kind or kind_of(config)
    read = read_config(KINDS[name].config(), config)
    click.echo(f"{config}: a valid {KINDS[name].title}{_found(read)}.")
    if name == "gateway":
        catalogue = _check_catalogue(config.parent / read.models_config)
        find_doubts = installed.load(
            "cortex_gateway.doubts", "find_doubts", "helexa-cortex-gateway"
        )
        for doubt in find_doubts(read, catalogue):
            click.echo(f"Warning: {doubt}.")


def kind_of(path: Path) -> str:
    """What a file is, by its name, else by its top-level keys.

    Raises:
        OperatorError: neither tells, or the file cannot be read.
    """
    for name, kind in KINDS.items():
        if path.name.startswith(kind.stem):
            return name
    keys = set(read_config(dict[str, Any], path))
    fitting = [name for name, kind in KINDS.items() if keys & kind.tables]
    if len(fitting) == 1:
        return fitting[0]
    raise OperatorError(
        message=f"It cannot be told what {path} is, by its name or its keys. Say --kind {', '.join(KINDS)}."
    )


def _check_catalogue(path: Path) -> Catalogue:
    if not path.exists():
        click.echo(f"{path}: not there; the gateway serves what its neurons have loaded.")
        return Catalogue()
    catalogue = read_config(Catalogue, path)
    click.echo(f"{path}: a valid {KINDS['catalogue'].title}{_found(catalogue)}.")
    return catalogue


def _found(read: Any) -> str:
    """How many there are of each thing that a file lists."""
    counts = [
        f"{name.replace('_', ' ')}: {len(value)}"
        for name in read.__struct_fields__
        if isinstance(value := getattr(read, name), list | dict) and value
    ]
    return f" ({', '.join(counts)})" if counts else ""
