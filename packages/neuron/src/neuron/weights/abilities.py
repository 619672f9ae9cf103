# SPDX-License-Identifier: GPL-3.0-or-later
"""What could a model do, once it is loaded? Told from its files, as an engine would tell it; no weights are read."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cortex_core.node import Limits
from neuron.harnesses.figures import read_figures
from neuron.harnesses.model_figures import read_json
from neuron.host.engines.vllm_parsers import MARKERS, choose_parsers

# How the names of architectures end that answer in text, and that score pairs of texts.
_TEXT = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_SCORES = ("ForSequenceClassification",)
_EMBEDS = ("Model", "ForMaskedLM")
# A sentence-transformers model embeds, whatever its architecture was made for.
_MODULES = "modules.json"
_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """Fields as in ModelState. Empty: the files do not tell."""

    capabilities: list[str] = []
    limits: Limits = Limits()


class _Added(msgspec.Struct):
    content: str = ""


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_Added] = []


_READ_TOKENIZER = msgspec.json.Decoder(_Tokenizer)
# Files come from whoever wrote the model; one that is nested without end must not be the end of a list of all of them.
_UNREADABLE = (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_abilities(folder: Path) -> Abilities:
    """Of the model in a folder. What is missing or broken tells nothing. Blocks; read once per change of the files."""
    return _read_abilities(folder, _changed_ns(folder / _CONFIG), _changed_ns(folder / _TOKENIZER))


@functools.lru_cache(maxsize=512)
def _read_abilities(folder: Path, _config_ns: int, _tokenizer_ns: int) -> Abilities:
    config = read_json(folder / _CONFIG)
    tokenizer = read_json(folder / "tokenizer_config.json")
    figures = read_figures(config, tokenizer, {})
    markers = MARKERS & set(_added_tokens(folder, tokenizer))
    parsers = choose_parsers(markers, _template(folder, tokenizer))
    architecture = figures.architecture or ""
    embeds = (folder / _MODULES).is_file() or architecture.endswith(_EMBEDS)
    talks = architecture.endswith(_TEXT) and not (folder / _MODULES).is_file()
    scores = architecture.endswith(_SCORES)
    found = {
        "text": talks,
        "tools": talks and parsers.tool is not None,
        "reasoning": talks and parsers.reasoning is not None,
        "vision": talks and "vision_config" in config,
        "embeddings": embeds and not scores,
        "score": scores or embeds,
        "rerank": scores or embeds,
    }
    context = figures.context
    return Abilities(
        capabilities=[name for name, there in found.items() if there],
        limits=Limits(context=context, output=context if talks else None),
    )


def _added_tokens(folder: Path, tokenizer: Mapping[str, Any]) -> Iterator[str]:
    """Words that are one token each: what was added to a vocabulary, as markers are."""
    try:
        told = _READ_TOKENIZER.decode((folder / _TOKENIZER).read_bytes())
    except _UNREADABLE:
        told = _Tokenizer()
    yield from (each.content for each in told.added_tokens)
    decoder = tokenizer.get("added_tokens_decoder")
    for each in decoder.values() if isinstance(decoder, dict) else ():
        content = each.get("content") if isinstance(each, dict) else None
        if isinstance(content, str):
            yield content


def _template(folder: Path, tokenizer: Mapping[str, Any]) -> str:
    """The chat template's text; of several all of them. Empty: none."""
    told = tokenizer.get("chat_template")
    if isinstance(told, str):
        return told
    if isinstance(told, list):
        return "\n".join(str(each.get("template")) for each in told if isinstance(each, dict))
    try:
        return (folder / "chat_template.jinja").read_text()
    except (OSError, UnicodeDecodeError):
        template = read_json(folder / "chat_template.json").get("chat_template")
        return template if isinstance(template, str) else ""


def _changed_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
