# SPDX-License-Identifier: GPL-3.0-or-later
"""How GGUF files are named, and which of them a quant's name means. Pure."""

import difflib
import re
from collections.abc import Iterable

import msgspec

# At the end of a file's stem, after the model's name: Q4_K_M, IQ4_XS, UD-Q4_K_XL, BF16.
_TAG = re.compile(
    r"(?:^|[-._/])((?:ud-)?(?:i?q\d\w*|tq\d\w*|mxfp4\w*|nvfp4|bf16|fp?16|fp?32))$", re.IGNORECASE
)
# What only GGUF files are called; `mxfp4` is also a method of vLLM.
_ONLY_GGUF = re.compile(r"(?:ud)?(?:i?q|tq)\d\w*", re.IGNORECASE)
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
# Beside a model, and no model: the projector of a vision model, what a quantization was tuned on.
_NO_MODEL = ("mmproj", "imatrix")


class Gguf(msgspec.Struct, frozen=True, kw_only=True):
    """One quantization in a repository.

    Attributes:
        tag: its name, as the file has it.
        files: its parts in order, mostly one.
        of: how many parts there must be.
    """

    tag: str
    files: list[str]
    of: int = 1


def group_ggufs(names: Iterable[str]) -> list[Gguf]:
    """The quantizations among a repository's files, in the order of their names."""
    parts: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for name in sorted(names):
        base = name.rpartition("/")[2].lower()
        if base.endswith(".gguf") and not base.startswith(_NO_MODEL):
            stem = name[: -len(".gguf")]
            part = _PART.search(stem)
            key = stem[: part.start()] if part else stem
            parts.setdefault(key, []).append(name)
            counts[key] = int(part[2]) if part else 1
    return [Gguf(tag=_tag(key), files=files, of=counts[key]) for key, files in parts.items()]


def find_gguf(quant: str, known: list[Gguf]) -> Gguf | None:
    """The quantization that a name means: a tag in any case, with `-`, `_`, `.` or nothing, or the file's own name."""
    wanted = _plain(quant)
    for gguf in known:
        names = [name.rpartition("/")[2] for name in gguf.files]
        if wanted == _plain(gguf.tag) or quant.lower() in [name.lower() for name in names]:
            return gguf
    return None


def nearest_tags(quant: str, known: list[Gguf]) -> list[str]:
    """Up to three tags that the name may have meant."""
    by_plain = {_plain(gguf.tag): gguf.tag for gguf in known}
    close = difflib.get_close_matches(_plain(quant), list(by_plain), n=3, cutoff=0.4)
    return [by_plain[name] for name in close]


def is_gguf_only(quant: str) -> bool:
    """Whether the name can only mean a GGUF file, and no method of vLLM."""
    return _ONLY_GGUF.fullmatch(_plain(quant)) is not None or quant.lower().endswith(".gguf")


def _tag(stem: str) -> str:
    found = _TAG.search(stem)
    return found[1] if found else stem.rpartition("/")[2]


def _plain(quant: str) -> str:
    return re.sub(r"[-_.\s]", "", quant).lower()
