# SPDX-License-Identifier: GPL-3.0-or-later
"""What do a model's files on disk say of its size? Only headers are read: tens of gigabytes take no longer than one."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from neuron.harnesses.figures import UNTOLD, Figures, read_figures

INDEX = "model.safetensors.index.json"
# Mistral's own names for the same weights; never the only ones beside `model*.safetensors`.
CONSOLIDATED = "consolidated"
# Files that have no header which tells; the first kind that is there is the one that is loaded.
HEADERLESS = ("*.bin", "*.pt", "*.gguf")


class _Tensor(msgspec.Struct):
    dtype: str
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


_READ_HEADER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_READ_TENSOR = msgspec.json.Decoder(_Tensor)
_READ_INDEX = msgspec.json.Decoder(_Index)
_UNREADABLE = (OSError, struct.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_model(path: Path, gguf: Sequence[str] = ()) -> Figures:
    """The figures of the model in a directory. What is missing or broken tells nothing. `gguf`: what is loaded of it."""
    config = read_json(path / "config.json")
    tensor_bytes = _tensor_bytes([path / name for name in gguf] or weights_files(path))
    return read_figures(config, read_json(path / "tokenizer_config.json"), tensor_bytes)


def _tensor_bytes(files: list[Path]) -> dict[str, int]:
    found: dict[str, int] = {}
    for file in files:
        told = _read_safetensors(file) if file.suffix == ".safetensors" else None
        for kind, size in (told or {UNTOLD: file.stat().st_size}).items():
            found[kind] = found.get(kind, 0) + size
    return found


def weights_files(folder: Path) -> list[Path]:
    """The files that an engine reads, of those that hold the same weights in several forms."""
    if named := _read_index(folder / INDEX):
        return [folder / name for name in sorted(named) if (folder / name).is_file()]
    safe = sorted(folder.glob("*.safetensors"))
    if safe:
        own = [file for file in safe if not file.name.startswith(CONSOLIDATED)]
        return own or safe
    return next((found for kind in HEADERLESS if (found := sorted(folder.glob(kind)))), [])


def _read_index(file: Path) -> set[str]:
    try:
        return {
            Path(name).name for name in _READ_INDEX.decode(file.read_bytes()).weight_map.values()
        }
    except _UNREADABLE:
        return set()


def _read_safetensors(file: Path) -> dict[str, int] | None:
    """Bytes by kind of number; None: the header is none."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            tensors = _READ_HEADER.decode(opened.read(min(length, file.stat().st_size)))
        tensors.pop("__metadata__", None)
        found: dict[str, int] = {}
        for tensor in map(_READ_TENSOR.decode, tensors.values()):
            begin, end = tensor.data_offsets
            found[tensor.dtype] = found.get(tensor.dtype, 0) + end - begin
    except _UNREADABLE:
        return None
    return found


def read_json(file: Path) -> Mapping[str, Any]:
    """A file's object; empty: it is not there, or holds none."""
    try:
        read: Mapping[str, Any] = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except _UNREADABLE:
        return {}
    return read
