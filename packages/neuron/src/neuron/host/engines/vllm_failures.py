# SPDX-License-Identifier: GPL-3.0-or-later
"""What vLLM's errors mean here: of a start that failed, and of a request that was refused. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cortex_core.errors import (
    ContextLengthExceededError,
    CortexError,
    EngineDiedError,
    InvalidRequestBodyError,
    ModelNotFoundError,
    UpstreamProtocolError,
    VisionUnsupportedError,
)
from neuron.host.engine import StartFailedError


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """An exception that a process of the engine saw: the name of its class, and what it says."""

    kind: str
    text: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A request that vLLM refused, or an engine that `died` under it."""

    status: int = 500
    message: str
    param: str | None = None
    died: bool = False


# What the text of a cause matches, the kind of failure, and what to do. The first that fits is it.
_START_RULES: Sequence[tuple[str, str, str]] = (
    (
        r"does not recognize this architecture|[Aa]rchitectures? .* not supported",
        "unsupported_architecture",
        "Use a model of an architecture that this vLLM knows, or a newer engine environment.",
    ),
    (
        r"must be divisible by tensor|not divisible by|Not enough allowed NUMA nodes",
        "tp_infeasible",
        "Choose a `tensor_parallel` that divides the model's attention heads.",
    ),
    (
        r"estimated maximum model length is (?P<fits>\d+)",
        "insufficient_vram",
        "Set `max_model_len` to {fits} or less, or raise `kv_cache_mb`.",
    ),
    (
        r"less than requested memory for kv|less than desired GPU memory|No available memory for the cache",
        "insufficient_vram",
        "Lower `kv_cache_mb`, or free memory on the device.",
    ),
    (
        r"out of memory|OutOfMemoryError|^MemoryError",
        "insufficient_vram",
        "Lower `kv_cache_mb` or `max_model_len`, or use more devices.",
    ),
    (
        r"^SafetensorError|Cannot find any model weights|not initialized from checkpoint"
        r"|exceeds dimension size|size mismatch|shape mismatch",
        "corrupt_weights",
        "Fetch the model's files again; they are incomplete, or belong to another config.json.",
    ),
    (
        r"^\w*TemplateSyntaxError",
        "invalid_spec",
        "Correct `chat_template`, or leave it out to use the model's own.",
    ),
    (
        r"[Pp]arser.* (not been registered|not found)|cannot be used with the tokenizer",
        "invalid_spec",
        "Leave `tool_parser` and `reasoning_parser` out to have them chosen.",
    ),
    (
        r"greater than the derived max_model_len",
        "invalid_spec",
        "Lower `max_model_len`, or leave it out to use the model's own.",
    ),
    (r"^ValidationError|No common block size", "invalid_spec", "Correct the spec."),
)
# Says only that there is a cause elsewhere.
_GENERIC = re.compile(r"Engine core initialization failed|EngineCore encountered an issue")
_LONGEST_CHARS = 500


def read_start_failure(causes: Sequence[Cause]) -> StartFailedError:
    """Why the start failed.

    Args:
        causes: what the engine's processes saw, oldest first; at least one.
    """
    telling = [cause for cause in causes if not _GENERIC.search(cause.text)] or list(causes)
    for pattern, kind, suggestion in _START_RULES:
        for cause in telling:
            if found := re.search(pattern, f"{cause.kind}: {cause.text}"):
                message = _plain(cause)
                return StartFailedError(kind, message, suggestion.format(**found.groupdict()))
    return StartFailedError("engine_start_failed", _plain(telling[0]))


def _plain(cause: Cause) -> str:
    """The text without the dressing of pydantic and vLLM, on one line and not endless."""
    text = re.sub(r"^\d+ validation errors? for \w+\s+", "", cause.text)
    text = re.sub(r"\s*\[type=.*", "", text, flags=re.DOTALL).replace("Value error, ", "")
    text = re.sub(r"\s*Supported architectures: .*", "", text, flags=re.DOTALL)
    text = " ".join(text.split()) or "no text"
    if cause.kind not in {"ValidationError", "ValueError", "RuntimeError"}:
        text = f"{cause.kind}: {text}"
    return text if len(text) <= _LONGEST_CHARS else text[:_LONGEST_CHARS] + "…"


_CONTEXT = re.compile(r"maximum context length", re.IGNORECASE)
_CONTEXT_BARE = re.compile(r"maximum\s+context length \((\d+)\)")
_NO_VISION = re.compile(r"not a multimodal model|At most 0 image")
# What nobody can use who asked: vLLM's repetition of the field, and xgrammar's time and line of source.
_DRESSING = re.compile(r"\s*\(parameter=.*\)\s*$|\[\d\d:\d\d:\d\d\] \S+:\d+: ", re.DOTALL)


def read_refusal(refusal: Refusal, model: str) -> CortexError:
    """The error a client gets for a request that vLLM refused."""
    message = _DRESSING.sub("", refusal.message).strip()
    if refusal.died:
        return EngineDiedError(model=model, reason=message)
    if _CONTEXT.search(message):
        reason = _CONTEXT_BARE.sub(r"maximum context length is \1 tokens", message)
        return ContextLengthExceededError(reason=reason)
    if _NO_VISION.search(message):
        return VisionUnsupportedError(model=model)
    if refusal.status == 404:
        return ModelNotFoundError(model=model)
    if refusal.status >= 500:
        return UpstreamProtocolError(upstream=f"The engine of '{model}'", reason=message)
    return InvalidRequestBodyError(reason=message.rstrip("."), param=refusal.param)


_TYPE_NAMES = frozenset({"str", "int", "float", "bool", "dict", "list", "json", "none"})
_FIELD_NAME = re.compile(r"[a-z_][a-z0-9_]*")


# Fields by which the types that an object may have are told apart.
_TAGS = ("type", "role")
_QUOTED = re.compile(r"'[^']*'")


def read_validation(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """What pydantic's errors come to: the field at fault, and what is wrong with it.

    Where a value may have several types, each of them gives errors; those of a type that it was not meant to have are
    passed over. Where it was meant to have none of them, all the tags that are known are told.
    """
    tags = [error for error in errors if _is_tag(error)]
    telling = _leave_out_others(errors, [error["loc"][:-1] for error in tags])
    if telling or not tags:
        told = (telling or errors)[0]
        path, message = _path(told["loc"]), str(told["msg"]).removeprefix("Value error, ")
    else:
        path = max((_path(error["loc"]) for error in tags), key=lambda path: path.count("."))
        texts = [str(error["msg"]) for error in tags if _path(error["loc"]) == path]
        words = dict.fromkeys(word for text in texts for word in _QUOTED.findall(text))
        message = f"Input should be {', '.join(words)}"
    return Refusal(
        status=400, message=f"{path}: {message}" if path else message, param=path or None
    )


def _is_tag(error: Mapping[str, Any]) -> bool:
    return error["type"] == "literal_error" and bool(error["loc"]) and error["loc"][-1] in _TAGS


def _leave_out_others(
    errors: Sequence[Mapping[str, Any]], others: Sequence[Sequence[int | str]]
) -> list[Mapping[str, Any]]:
    """Errors but those at the locations of types that a value was not meant to have: `others`, and a text where it has parts."""
    return [
        error
        for error in errors
        if not any(error["loc"][: len(other)] == other for other in others)
        and not (error["loc"][-1:] == ("str",) and isinstance(error.get("input"), list))
    ]


def _path(location: Sequence[int | str]) -> str:
    """The location without the names of types that pydantic tried."""
    fields = [
        str(part)
        for part in location
        if isinstance(part, int) or (_FIELD_NAME.fullmatch(part) and part not in _TYPE_NAMES)
    ]
    # Parts of a message's content are read on their own, and the location begins with the part.
    return ".".join(["content", *fields] if location and isinstance(location[0], int) else fields)
