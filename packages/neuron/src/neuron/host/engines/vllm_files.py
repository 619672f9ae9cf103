# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a model's directory can be loaded at all, told from its files in a moment.

vLLM finds the same out minutes later, or not at all: without a tokenizer it fails with an index error, and a
weights file that is none is a memory error without a text.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from neuron.host.engine import StartFailedError

_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model",
    "tiktoken.model", "*.tiktoken", "tokenizer_config.json",
)  # fmt: skip
_CONFIG = "config.json"
_CONFIGS = (_CONFIG, "params.json")
# Of another kind, each of these is an error of vLLM's that names neither file nor field.
_KINDS = {
    "architectures": (list, "list"),
    "layer_types": (list, "list"),
    "rope_parameters": (dict, "object"),
    "rope_scaling": (dict, "object"),
    "text_config": (dict, "object"),
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_AGAIN = "Fetch the model's files again."


class _Tensor(msgspec.Struct):
    data_offsets: tuple[int, int]
    shape: tuple[int, ...] = ()


_READ_HEADER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_READ_TENSOR = msgspec.json.Decoder(_Tensor)


def check_files(model_path: Path) -> None:
    """Look at the directory.

    Raises:
        StartFailedError: `empty_repo`: something that every model has is missing. `corrupt_weights`: a file is
            not what its name says, or was cut off.
    """
    if not model_path.is_dir():
        raise StartFailedError("empty_repo", f"there is no directory {model_path}", _AGAIN)
    _expect(model_path, _CONFIGS, "configuration")
    _expect(model_path, _TOKENIZERS, "tokenizer")
    for config in model_path.glob("*.json"):
        check_json(config)
    read_config(model_path)
    for weights in sorted(model_path.glob("*.safetensors")):
        check_safetensors(weights)


def _expect(model_path: Path, patterns: tuple[str, ...], what: str) -> None:
    if not any(any(model_path.glob(pattern)) for pattern in patterns):
        raise StartFailedError(
            "empty_repo", f"{model_path} has no {what} ({', '.join(patterns[:3])})", _AGAIN
        )


def check_json(file: Path) -> Any:
    """What a JSON file says. Raises as `check_files`."""
    try:
        return msgspec.json.decode(file.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StartFailedError(
            "corrupt_weights", f"{file.name} is not valid JSON: {error}", _AGAIN
        ) from None


def read_config(model_path: Path) -> Mapping[str, Any]:
    """What config.json says; empty: there is none. Raises as `check_files`."""
    file = model_path / _CONFIG
    config = check_json(file) if file.is_file() else {}
    if not isinstance(config, dict):
        raise StartFailedError("corrupt_weights", f"{_CONFIG} is no object", _AGAIN)
    for name, (kind, word) in _KINDS.items():
        if not isinstance(config.get(name) or kind(), kind):
            raise StartFailedError("corrupt_weights", f"`{name}` in {_CONFIG} is no {word}", _AGAIN)
    return config


def check_safetensors(file: Path) -> None:
    """Eight bytes of length, a header of that length, and as many bytes as the header says. Raises as `check_files`."""
    length, tensors = _read_header(file)
    end = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    size = file.stat().st_size
    if 8 + length + end != size:
        raise _corrupt(file, f"it has {size} bytes where its header tells of {8 + length + end}")


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file. Raises as `check_files`."""
    return {name: tensor.shape for name, tensor in _read_header(file)[1].items()}


def _read_header(file: Path) -> tuple[int, dict[str, _Tensor]]:
    """The header's length in bytes, and what it says of each tensor."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else _MAX_HEADER_BYTES
        if length >= min(size, _MAX_HEADER_BYTES):
            raise _corrupt(file, "its header is unreadable")
        try:
            found = _READ_HEADER.decode(opened.read(length))
            found.pop("__metadata__", None)
            return length, {name: _READ_TENSOR.decode(raw) for name, raw in found.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _corrupt(file, "its header is unreadable") from None


def _corrupt(file: Path, reason: str) -> StartFailedError:
    return StartFailedError(
        "corrupt_weights", f"{file.name} is no whole weights file: {reason}", _AGAIN
    )
