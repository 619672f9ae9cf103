# SPDX-License-Identifier: GPL-3.0-or-later
"""Where on this machine a model's files are: shipped, in a directory of models, or in the Hugging Face cache."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from cortex_core.control import ModelSpec
from cortex_core.errors import LoadRefusedError
from cortex_core.sources import read_model_name
from neuron import demo
from neuron.config import VllmSettings

DEMO = "helexa/demo"
HUGGINGFACE = "huggingface"
MIB = 1024 * 1024

_SANE = re.compile(r"[\w.-]+(/[\w.-]+)*")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


class ModelFiles:
    """Finds models.

    Args:
        settings: of the harness.
        own_paths: absolute paths that neuron.toml names as models. No other path is ever opened: a client could
            read the machine's files by it.
        environ: for the place of the Hugging Face cache.
    """

    def __init__(
        self, settings: VllmSettings, own_paths: set[str], environ: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._own_paths = own_paths
        self._hf_cache = Path(settings.hf_cache or _hf_cache(environ)).expanduser()

    def locate(self, spec: ModelSpec) -> Path:
        """The directory with the model's files.

        Raises:
            LoadRefusedError: `invalid_spec`: the id is no model's. `repo_fetch_failed`: it is nowhere; says where
                it was looked for.
        """
        model = spec.model_id
        if model in self._own_paths:
            return Path(model)
        name = read_model_name(model)
        if not _SANE.fullmatch(name.bare) or ".." in name.bare.split("/"):
            raise _refused(
                model,
                "invalid_spec",
                "the id is not written as `org/name` or `scheme:org/name`",
                "Paths can be set in neuron.toml only.",
            )
        if name.scheme not in (None, HUGGINGFACE, self._settings.default_source):
            raise _refused(
                model,
                "repo_fetch_failed",
                f"there is no source '{name.scheme}' here",
                f"Known is {HUGGINGFACE}.",
            )
        places = list(self._places(name.bare))
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise _not_found(model, places)
        return found

    def _places(self, name: str) -> Iterator[Path]:
        """Where the files may be, the likeliest first."""
        if name == DEMO:
            yield demo.path()
        for folder in self._settings.model_dirs:
            yield Path(folder).expanduser() / name
        yield _snapshot(self._hf_cache / f"models--{name.replace('/', '--')}")


def weights_mb(folder: Path, model: str) -> int:
    """MiB of the weights, as their files are large.

    Raises:
        LoadRefusedError: `empty_repo`: there are none.
    """
    sizes = [file.stat().st_size for pattern in _WEIGHTS for file in folder.glob(pattern)]
    if not sizes:
        raise _refused(
            model,
            "empty_repo",
            f"{folder} has no weights ({', '.join(_WEIGHTS)})",
            "Fetch the model's files again.",
        )
    return -(-sum(sizes) // MIB)


def _snapshot(repo: Path) -> Path:
    """The snapshot that `main` names; of a cache that was copied by hand, its only one."""
    snapshots = repo / "snapshots"
    try:
        return snapshots / (repo / "refs" / "main").read_text().strip()
    except OSError:
        found = list(snapshots.glob("*")) if snapshots.is_dir() else []
        return found[0] if len(found) == 1 else snapshots / "main"


def _hf_cache(environ: Mapping[str, str]) -> str:
    """As the Hugging Face libraries look for it."""
    if cache := environ.get("HF_HUB_CACHE"):
        return cache
    home = environ.get("HF_HOME") or os.path.join(  # noqa: PTH118 - a variable's value, not a file
        environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return f"{home}/hub"


def _not_found(model: str, places: list[Path]) -> LoadRefusedError:
    looked = ", ".join(str(place) for place in places)
    return _refused(
        model,
        "repo_fetch_failed",
        f"its files are not on this machine; looked for {looked}",
        "Put them into one of these directories; `model_dirs` in neuron.toml adds more.",
    )


def _refused(model: str, kind: str, reason: str, suggestion: str) -> LoadRefusedError:
    return LoadRefusedError(model=model, load_kind=kind, reason=reason, suggestion=suggestion)
