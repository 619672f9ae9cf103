# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files of a repository vLLM needs, and what is missing of them. Pure."""

import re
from collections.abc import Callable, Collection, Iterable

import msgspec

from neuron.weights.quants import Gguf, find_gguf, group_ggufs, is_gguf_only, nearest_tags
from neuron.weights.refusals import WeightsError

# Configuration, tokenizer, processor, templates: all small.
_COMPANIONS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
# Modules of sentence-transformers (`1_Pooling/config.json`), and further chat templates. What else lies in folders
# are the same weights again, for other programs.
_FOLDERS = re.compile(r"(?:\d+_[A-Za-z]+|additional_chat_templates)/[^/]+")
_OF_TRAINING = re.compile(
    r"(?:trainer_state|training_args|optimizer|scheduler|rng_state|(?:all|eval|train)_results|global_step)\b.*"
)
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<of>\d{5})(?P<suffix>\.\w+)")
_SANE = re.compile(r"[^\\\0]+")

CONFIGS = ("config.json", "params.json")
ADAPTER = "adapter_config.json"
_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model",
    "tiktoken.model", "tokenizer_config.json",
)  # fmt: skip
INDEX = ".index.json"
# vLLM's for GGUF, as package indexes call it.
PLUGIN = "vllm-gguf-plugin"


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What of a repository is to be had.

    Attributes:
        weights: the weights' files.
        companions: what goes with them.
        gguf: the quantization they are; None: they are no GGUF.
    """

    weights: list[str]
    companions: list[str]
    gguf: Gguf | None = None

    @property
    def files(self) -> list[str]:
        """All of them, the small ones first."""
        return [*self.companions, *self.weights]


def choose_files(names: Collection[str], quant: str | None) -> Chosen:
    """Choose by name alone.

    1. A GGUF file that `quant` names, in all its parts.
    2. Else safetensors; where a repository has them twice, those that vLLM would take.
    3. Else `.bin`, else `.pt`.
    4. Else the only GGUF, where `quant` says nothing.

    Raises:
        WeightsError: `quant_not_found`: there is no such GGUF, or several and none was named. `corrupt_weights`: a
            part is missing. `empty_repo`: there are no weights at all.
    """
    sane = sorted(name for name in names if _is_sane(name))
    ggufs = group_ggufs(sane)
    named = find_gguf(quant, ggufs) if quant else None
    if named:
        return _with_companions(sane, named.files, named)
    weights = _safetensors(sane) or _by_suffix(sane, ".bin") or _by_suffix(sane, ".pt")
    if weights and not (quant and is_gguf_only(quant)):
        return _with_companions(sane, weights, None)
    if not quant and len(ggufs) == 1:
        return _with_companions(sane, ggufs[0].files, ggufs[0])
    if ggufs or weights:
        raise _no_such_quant(quant, ggufs)
    raise WeightsError(
        "empty_repo",
        "the repository has no weights that vLLM can read (safetensors, bin, pt or gguf)",
        "Check the id.",
    )


def choose_companions(names: Collection[str]) -> list[str]:
    """Configuration, tokenizer and templates alone: for a GGUF file that comes without them."""
    return _companions([name for name in sorted(names) if _is_sane(name)], [])


def missing_files(
    names: Collection[str], quant: str | None, read_index: Callable[[str], Iterable[str]]
) -> list[str]:
    """What of a model is not in a folder; empty: it is whole. `weights` and the like stand for any file of the kind.

    Args:
        names: of the files in the folder, as far as they can be read.
        quant: as in `choose_files`.
        read_index: the weights that an index in the folder names.
    """
    try:
        chosen = choose_files(names, quant)
    except WeightsError:
        return ["weights"]
    indices = [name for name in chosen.companions if name.endswith(INDEX)]
    missing = [name for index in indices for name in read_index(index) if name not in names]
    if not chosen.gguf and ADAPTER not in names:
        missing += [] if set(CONFIGS) & set(names) else ["config.json"]
        missing += [] if _has_tokenizer(names) else ["tokenizer.json"]
    return list(dict.fromkeys(missing))


def choose_gguf(names: Collection[str], quant: str | None) -> Chosen | None:
    """The GGUF that is meant of what is on disk; None: what is meant is of another form.

    Raises:
        WeightsError: `quant_not_found`, `corrupt_weights`: as `choose_files`.
    """
    if not (quant and is_gguf_only(quant)) and not group_ggufs(names):
        return None
    chosen = choose_files(names, quant)
    return chosen if chosen.gguf else None


def refuse_gguf(tag: str) -> WeightsError:
    """Why GGUF weights are not loaded where engines have no plugin for them."""
    return WeightsError(
        "unsupported_architecture",
        f"its weights are GGUF ({tag}), which vLLM reads with {PLUGIN} only, and on GPUs only: engines here have none",
        f"On a machine with GPUs install {PLUGIN} in the environment that engines run in (`[harness.vllm] python`); "
        "or load a repository that has the model as safetensors.",
    )


def needs_base(chosen: Chosen) -> bool:
    """Whether a GGUF comes without tokenizer or configuration, which are then those of the model it was made from."""
    if chosen.gguf is None:
        return False
    return "config.json" not in chosen.companions or not _has_tokenizer(chosen.companions)


def guess_base(name: str, declared: str | list[str] | None) -> str | None:
    """The repository that a GGUF was made from: as its card says, else by its name; None: neither tells."""
    if isinstance(declared, list):
        declared = declared[0] if len(declared) == 1 else None
    if declared:
        return declared
    bare = re.sub(r"[-_.]gguf$", "", name, flags=re.IGNORECASE)
    return bare if bare != name else None


def _with_companions(names: list[str], weights: list[str], gguf: Gguf | None) -> Chosen:
    missing = [part for part in _parts(weights) if part not in names]
    if missing:
        raise WeightsError(
            "corrupt_weights",
            f"the repository itself lacks {', '.join(missing[:3])}",
            "Choose another repository or quant.",
        )
    return Chosen(weights=weights, companions=_companions(names, weights), gguf=gguf)


def _companions(names: list[str], weights: list[str]) -> list[str]:
    return [
        name
        for name in names
        if name.endswith(_COMPANIONS) and _is_ours(name) and _goes_with(name, weights)
    ]


def _goes_with(name: str, weights: list[str]) -> bool:
    """An index of weights that are not taken would name files that are not there."""
    if not name.endswith(INDEX):
        return True
    stem, _, suffix = name.removesuffix(INDEX).rpartition(".")
    return any(weight.startswith(stem) and weight.endswith(suffix) for weight in weights)


def _safetensors(names: list[str]) -> list[str]:
    found = _by_suffix(names, ".safetensors")
    official = [name for name in found if name.startswith("consolidated")]
    others = [name for name in found if name not in official]
    if official and (not others or "params.json" in names):
        return official  # Mistral's own format, which vLLM prefers
    if "model.safetensors" in others and any(_PART.fullmatch(name) for name in others):
        others.remove("model.safetensors")  # the same weights in one file
    return others


def _by_suffix(names: list[str], suffix: str) -> list[str]:
    return [name for name in names if name.endswith(suffix) and _is_ours(name)]


def _parts(weights: Iterable[str]) -> list[str]:
    """Every part of those weights that are in parts."""
    wanted: dict[str, None] = {}
    for weight in weights:
        if match := _PART.fullmatch(weight):
            for part in range(1, int(match["of"]) + 1):
                wanted[f"{match['stem']}-{part:05}-of-{match['of']}{match['suffix']}"] = None
    return list(wanted)


def _is_ours(name: str) -> bool:
    in_place = "/" not in name or _FOLDERS.fullmatch(name) is not None
    return in_place and not _OF_TRAINING.match(name)


def _is_sane(name: str) -> bool:
    """A name comes from a server, and becomes a path here."""
    pieces = name.split("/")
    return _SANE.fullmatch(name) is not None and all(
        piece and not piece.startswith(".") for piece in pieces
    )


def _has_tokenizer(names: Collection[str]) -> bool:
    return bool(set(_TOKENIZERS) & set(names)) or any(name.endswith(".tiktoken") for name in names)


def _no_such_quant(quant: str | None, ggufs: list[Gguf]) -> WeightsError:
    tags = ", ".join(gguf.tag for gguf in ggufs) or "none"
    if quant is None:
        return WeightsError(
            "quant_not_found",
            "the repository has several GGUF quants, and none was named",
            f"Set `quant` to one of: {tags}.",
        )
    near = nearest_tags(quant, ggufs)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    return WeightsError(
        "quant_not_found",
        f"the repository has no GGUF quant '{quant}'",
        f"{meant}There are: {tags}.",
    )
