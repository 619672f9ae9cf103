# SPDX-License-Identifier: GPL-3.0-or-later
"""The repository as data, for its tests about itself and for the reference: modules parsed, files listed."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "packages"
# What tools make; none of it is ours.
_MADE = {"__pycache__", "dist", "build", "node_modules"}
_OURS_THOUGH_HIDDEN = {".ci", ".gitignore"}
_BINARY = {".safetensors", ".png", ".whl", ".gz"}


class Module(NamedTuple):
    """One Python file. `name` is how it is imported, such as `cortex_core.http.client`."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def docstring(self) -> str:
        """Empty where there is none."""
        return ast.get_docstring(self.tree) or ""

    @property
    def is_pure(self) -> bool:
        """Whether it says so of itself, at the end of a paragraph."""
        return any(part.endswith("Pure.") for part in self.docstring.split("\n\n"))

    @property
    def package(self) -> str:
        """The top-level package: `cortex_core`."""
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        """Its path, for messages."""
        return str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else self.name


def files() -> Iterator[Path]:
    """Every file of the repository but what tools made."""
    yield from _walk(ROOT)


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".") and path.name not in _OURS_THOUGH_HIDDEN
        if hidden or path.name in _MADE or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


@cache
def texts() -> dict[Path, str]:
    """Every file that people read, with its text."""
    return {
        path: path.read_text(encoding="utf-8") for path in files() if path.suffix not in _BINARY
    }


def parse(name: str, path: Path, text: str) -> Module:
    """A module from its source."""
    return Module(name, path, text, ast.parse(text))


@cache
def sources() -> list[Module]:
    """The modules of the four packages."""
    found = []
    for src in sorted(PACKAGES.glob("*/src")):
        for path in sorted(src.glob("*/**/*.py")):
            parts = path.relative_to(src).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            found.append(parse(name, path, path.read_text(encoding="utf-8")))
    return found


@cache
def scripts() -> list[Module]:
    """Every other Python file: tests, tools, the noxfile."""
    inside = [path for path in files() if path.suffix == ".py" and "src" not in path.parts]
    inside.append(ROOT / "tools/nox")
    return [parse(path.stem, path, path.read_text(encoding="utf-8")) for path in inside]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name that is imported, in full: `from a.b import c` gives `a.b.c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function, however deep."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
