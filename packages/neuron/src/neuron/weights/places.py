# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the files of a model id are, or are to be: shipped, in a directory of the operator's, in a source's cache."""

import re
from pathlib import Path

import msgspec

from cortex_core.sources import read_model_name
from cortex_core.weights import WeightsState
from neuron import demo
from neuron.config import VllmSettings
from neuron.weights.abilities import read_abilities
from neuron.weights.cache import Cache, lacks, names_in
from neuron.weights.choosing import CONFIGS
from neuron.weights.quants import group_ggufs
from neuron.weights.refusals import WeightsError
from neuron.weights.room import MIB
from neuron.weights.sources import Source, Sources

DEMO = "helexa/demo"

_SANE = re.compile(r"[\w.-]+(/[\w.-]+)*")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the files of one model are.

    Attributes:
        name: the id without its scheme.
        source: that they come from.
        fixed: the folder that is used as it is: nothing is ever fetched into it, or removed; None: there is none.
    """

    name: str
    source: Source
    fixed: Path | None = None

    @property
    def id(self) -> str:
        """With its scheme, whether it was asked for with it or not."""
        return f"{self.source.scheme}:{self.name}"

    @property
    def cache(self) -> Cache:
        """Of the source."""
        return Cache(self.source.cache_dir)

    @property
    def folder(self) -> Path:
        """Of the repository in that cache."""
        return self.cache.folder(self.name)

    def find(self, quant: str | None) -> Path | None:
        """The folder to load it from; None: it is not here, or not whole. Blocks."""
        return self.fixed or self.cache.whole(self.name, quant)


class Places:
    """Finds models.

    Args:
        settings: of the harness.
        sources: of the daemon.
        own_paths: absolute paths that neuron.toml names as models. No other path is ever opened: a client could
            read the machine's files by it.
    """

    def __init__(self, settings: VllmSettings, sources: Sources, own_paths: set[str]) -> None:
        self._model_dirs = [Path(folder).expanduser() for folder in settings.model_dirs]
        self._sources = sources
        self._own_paths = own_paths

    def look(self, model_id: str) -> Place:
        """The place of a model.

        Raises:
            WeightsError: `invalid_spec`: the id is no model's. `repo_fetch_failed`: its source is not known.
        """
        if model_id in self._own_paths:
            return Place(name=model_id, source=self._sources.default, fixed=Path(model_id))
        name = read_model_name(model_id)
        if not _SANE.fullmatch(name.bare) or ".." in name.bare.split("/"):
            raise WeightsError(
                "invalid_spec",
                "the id is not written as `org/name` or `scheme:org/name`",
                "Paths can be set in neuron.toml only.",
            )
        source = self._sources.find(name)
        fixed = (folder for folder in self.fixed_folders(name.bare) if folder.is_dir())
        if name.bare == DEMO and source == self._sources.default:
            return Place(name=name.bare, source=source, fixed=demo.path())
        return Place(name=name.bare, source=source, fixed=next(fixed, None))

    def fixed_folders(self, name: str) -> list[Path]:
        """Where the operator may have put a model, whether it is there or not."""
        return [folder / name for folder in self._model_dirs]

    def scan_fixed(self) -> list[WeightsState]:
        """Every model that is shipped or in a directory of the operator's. Blocks."""
        found = {DEMO: demo.path()}
        for parent in self._model_dirs:
            for folder in sorted([*parent.glob("*/"), *parent.glob("*/*/")]):
                name = folder.relative_to(parent).as_posix()
                if _is_model(folder) and name not in found:
                    found[name] = folder
        return [_fixed_state(name, folder) for name, folder in found.items()]


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in CONFIGS) or any(folder.glob("*.gguf"))


def _fixed_state(name: str, folder: Path) -> WeightsState:
    names = names_in(folder)
    quants = [gguf.tag for gguf in group_ggufs(names)]
    could = read_abilities(folder)
    return WeightsState(
        id=name,
        size_mb=-(-sum((folder / file).stat().st_size for file in names) // MIB),
        complete=not lacks(folder, quants[0] if quants else None),
        quants=quants,
        capabilities=could.capabilities,
        limits=could.limits,
    )
