# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's envelopes: the fields that we read or write, nothing more. Pure.

Requests are never re-encoded: `read_asked` takes a narrow look, and `rename_model` replaces one value and
leaves every other byte for byte as the client sent it.
"""

from typing import TypeVar

import msgspec

from cortex_core import sse
from cortex_core.errors import (
    CortexError,
    InvalidRequestBodyError,
    MalformedJsonError,
    MissingModelFieldError,
    write_openai,
)

T = TypeVar("T")

# How paths begin that no client of another API asks for.
PATHS = (
    "/v1/chat/",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
    "/tokenize",
)


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`. `include_usage`: the client wants a last chunk with the usage."""

    include_usage: bool | None = None


class Asked(msgspec.Struct, frozen=True):
    """What routing must know of a request. `model` may be an alias."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether the client asked for the usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


class PromptDetails(msgspec.Struct, frozen=True):
    """Sub-counts of the prompt's tokens."""

    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct, frozen=True):
    """Sub-counts of the answer's tokens."""

    reasoning_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one request; sub-counts are part of the counts, never added."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Location(msgspec.Struct, frozen=True):
    """A node that has a model, and in which state."""

    node: str
    status: str
    vram_estimate_mb: int | None = None


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of GET /v1/models.

    Attributes:
        created: Unix seconds.
        loaded: status `loaded` somewhere. Not omitted when False.
        residency: `serving`, `asleep`, `on_disk` or `remote`.
        feasible_on: nodes that could run it.
        reason: why it can run nowhere, with the arithmetic; None: it can.
        alias_of: the concrete id; None: this is one.
        parent: the model that this is a LoRA adapter of; None: it is none.
        root: the repository that the adapter's weights come from.
    """

    id: str
    object: str
    created: int
    owned_by: str
    loaded: bool
    residency: str | None = None
    feasible_on: list[str] | None = None
    locations: list[Location] | None = None
    capabilities: list[str] | None = None
    max_model_len: int | None = None
    max_output_tokens: int | None = None
    reason: str | None = None
    alias_of: str | None = None
    parent: str | None = None
    root: str | None = None


class ModelList(msgspec.Struct, frozen=True):
    """The answer of GET /v1/models."""

    data: list[ModelEntry]
    object: str = "list"


_ASKED = msgspec.json.Decoder(Asked)
_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODE = msgspec.json.Encoder()


def read_body(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A request's body, as the decoder reads it.

    Raises:
        MalformedJsonError: not JSON, or nested more deeply than can be read. The client's fault, as the other is.
        InvalidRequestBodyError: JSON of another shape; names the field.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequestBodyError(reason=str(error), param=_param(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedJsonError(reason=str(error)) from None
    except RecursionError:
        raise MalformedJsonError(reason="it is nested too deeply") from None


def read_asked(body: bytes) -> Asked:
    """The narrow look at a request's body. `model` is there and not empty.

    Raises:
        MissingModelFieldError: no model, or an empty one. The client's fault.
        MalformedJsonError, InvalidRequestBodyError: as `read_body`.
    """
    asked = read_body(body, _ASKED)
    if not asked.model:
        raise MissingModelFieldError(param="model")
    return asked


def rename_model(body: bytes, model: str) -> bytes:
    """The same body, asking for another model. Every other value stays byte for byte."""
    fields = _RAW_FIELDS.decode(body)
    fields["model"] = msgspec.Raw(_ENCODE.encode(model))
    return _ENCODE.encode(fields)


def write_error_events(error: CortexError) -> bytes:
    """How a stream that has begun ends in an error: an error event, then `[DONE]`."""
    return sse.write_data(write_openai(error)) + sse.DONE


def _param(message: str) -> str | None:
    """The field in a msgspec message: `… - at `$.stream`` names `stream`."""
    _, _, path = message.rpartition("`$.")
    return path.rstrip("`") or None if path != message else None
