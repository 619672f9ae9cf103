# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether LoRA adapters can be served beside their model, told from their files in a moment."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from neuron.host.engine import StartFailedError
from neuron.host.engines.vllm_files import check_json, check_safetensors, read_config, read_shapes
from neuron.host.engines.vllm_options import LORA_RANKS

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_MAX_NAME_LENGTH = 256
_Rank = Annotated[int, msgspec.Meta(gt=0)]


_LAYER = re.compile(r"\.layers\.(\d+)\.")
_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


class _Model(NamedTuple):
    """The model beside which adapters are to be served: how many layers, and the shape of each tensor."""

    layers: int | None
    shapes: Mapping[str, tuple[int, ...]]


class _Config(msgspec.Struct):
    """What peft says of an adapter, as far as it is looked into."""

    r: _Rank
    rank_pattern: dict[str, _Rank] = {}
    peft_type: Literal["LORA"] = "LORA"


def check_adapters(adapters: Mapping[str, str], model_id: str, model_path: Path) -> int:
    """Look at the adapters' directories; returns the highest rank, 0 where there are none.

    Args:
        adapters: name to directory.
        model_id: of the model that they are for.
        model_path: directory with its files. vLLM itself may take an adapter of another model, and serve nonsense.

    Raises:
        StartFailedError: `invalid_spec`: a name cannot be a model's, or an adapter does not fit the model, or is none
            that vLLM serves. `empty_repo`: a directory holds none. `corrupt_weights`: a file is not what its name says.
    """
    if not adapters:
        return 0
    for name in adapters:
        _check_name(name, model_id)
    model = _read_model(model_path)
    return max(_check_adapter(name, Path(path), model) for name, path in adapters.items())


def _check_name(name: str, model_id: str) -> None:
    if not name or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        reason = f"the name of an adapter is 1 to {_MAX_NAME_LENGTH} characters that can be printed"
    elif name == model_id:
        reason = f"the adapter '{name}' is called like its model"
    else:
        return
    raise StartFailedError("invalid_spec", reason, "Clients ask for an adapter by its name.")


def _check_adapter(name: str, folder: Path, model: _Model) -> int:
    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():
            raise StartFailedError(
                "empty_repo",
                f"the adapter '{name}' has no {file} in {folder}",
                "Save it by `save_pretrained` of peft, and fetch all its files.",
            )
    check_safetensors(folder / _WEIGHTS)
    rank = _read_rank(name, check_json(folder / _CONFIG))
    for tensor, shape in read_shapes(folder / _WEIGHTS).items():
        if not _fits(tensor, shape, model, rank):
            raise _unserved(name, f"does not fit the model: {tensor} has the shape {list(shape)}")
    return rank


def _read_model(path: Path) -> _Model:
    config = read_config(path)
    text = config.get("text_config") or config
    shapes: dict[str, tuple[int, ...]] = {}
    for file in path.glob("*.safetensors"):
        shapes |= read_shapes(file)
    layers = text.get("num_hidden_layers")
    return _Model(layers if isinstance(layers, int) else None, shapes)


def _fits(tensor: str, shape: tuple[int, ...], model: _Model, rank: int) -> bool:
    """Whether a tensor of an adapter can belong to the model. What is called otherwise there is not looked at."""
    if (layer := _LAYER.search(tensor)) and model.layers and int(layer[1]) >= model.layers:
        return False
    named = _LORA.fullmatch(tensor)
    if named is None or len(shape) != 2:
        return True
    own, outer = shape if named["side"] == "A" else shape[::-1]
    found = model.shapes.get(f"{named['module']}.weight", ())
    expected = (found[1] if named["side"] == "A" else found[0]) if len(found) == 2 else outer
    return own <= rank and outer == expected


def _read_rank(name: str, config: Any) -> int:
    try:
        found = msgspec.convert(config, _Config)
    except msgspec.ValidationError as error:
        raise _unserved(name, f"is not one of LoRA: {_CONFIG}: {error}") from None
    rank = max(found.r, *found.rank_pattern.values(), 0)
    if rank > LORA_RANKS[-1]:
        raise _unserved(name, f"has the rank {rank}, and {LORA_RANKS[-1]} is the highest served")
    return rank


def _unserved(name: str, why: str) -> StartFailedError:
    return StartFailedError(
        "invalid_spec", f"the adapter '{name}' {why}", "Leave it out of `lora`, or train it anew."
    )
