# SPDX-License-Identifier: GPL-3.0-or-later
"""What an echo engine answers where nothing is written: vectors, scores, ranks and tokens of texts.

The same text always gives the same numbers. A vector tells which words a text has, so texts that share words are near
each other, and one is nearest to itself. Pure.
"""

import base64
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from cortex_core.errors import ContextLengthExceededError, InvalidRequestBodyError
from cortex_core.openai import Usage, read_body
from neuron.host.engines.echo_answer import Message, split_tokens
from neuron.host.engines.echo_options import EchoOptions
from neuron.host.engines.echo_wire import Head

DIMENSIONS = 64
# What a model without a limit says of its context.
NO_LIMIT = 1_000_000

_ENCODE = msgspec.json.Encoder()

Answer = Callable[[bytes, EchoOptions, Head], bytes]


class Embeddings(msgspec.Struct, frozen=True):
    """A request for vectors. `input` is a text, token ids, or a list of either."""

    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class Score(msgspec.Struct, frozen=True):
    """A request for scores of pairs; both spellings of vLLM's."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None


class Rerank(msgspec.Struct, frozen=True):
    """A request to rank documents. A document is a text, or an object that has one."""

    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None


class Tokenize(msgspec.Struct, frozen=True):
    """A request for tokens, of a text or a conversation."""

    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool | None = None


_EMBEDDINGS = msgspec.json.Decoder(Embeddings)
_SCORE = msgspec.json.Decoder(Score)
_RERANK = msgspec.json.Decoder(Rerank)
_TOKENIZE = msgspec.json.Decoder(Tokenize)


def embed(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """The vector of a text, of length 1."""
    vector = [0.0] * dimensions
    for word in text.lower().split():
        mixed = zlib.crc32(word.encode())
        vector[mixed % dimensions] += 1.0 if mixed & 1 << 31 else -1.0
    length = math.sqrt(math.fsum(value * value for value in vector))
    if not length:
        return [1.0, *vector[1:]]
    return [value / length for value in vector]


def compare(one: str, other: str) -> float:
    """How near two texts are: 1 where they have the same words."""
    return math.fsum(a * b for a, b in zip(embed(one), embed(other), strict=True))


def answer_embeddings(body: bytes, options: EchoOptions, head: Head) -> bytes:
    """POST /v1/embeddings. Raises ClientError, as the others do."""
    asked = read_body(body, _EMBEDDINGS)
    texts = _texts(asked.input)
    usage = _count(texts, options, "input")
    dimensions = asked.dimensions or DIMENSIONS
    if not 0 < dimensions <= NO_LIMIT:
        raise InvalidRequestBodyError(reason=f"`dimensions` is {dimensions}", param="dimensions")
    vectors = [embed(text, dimensions) for text in texts]
    written = [_pack(v) for v in vectors] if asked.encoding_format == "base64" else vectors
    data = [
        {"object": "embedding", "index": index, "embedding": value}
        for index, value in enumerate(written)
    ]
    return _body(head, data=data, usage=usage)


def answer_score(body: bytes, options: EchoOptions, head: Head) -> bytes:
    """POST /v1/score: each of one side with its partner of the other, or one with all."""
    asked = read_body(body, _SCORE)
    left = _list(asked.text_1 or asked.queries, "text_1")
    right = _list(asked.text_2 or asked.documents, "text_2")
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        raise InvalidRequestBodyError(
            reason=f"{len(left)} texts cannot be paired with {len(right)}", param="text_1"
        )
    usage = _count([*left, *right], options, "text_1")
    data = [
        {"object": "score", "index": index, "score": compare(*pair)}
        for index, pair in enumerate(zip(left, right, strict=True))
    ]
    return _body(head, data=data, usage=usage)


def answer_rerank(body: bytes, options: EchoOptions, head: Head) -> bytes:
    """POST /v1/rerank: the documents, those nearest to the query first."""
    asked = read_body(body, _RERANK)
    texts = [d if isinstance(d, str) else str(d.get("text", "")) for d in asked.documents]
    usage = _count([asked.query, *texts], options, "documents")
    scores = [compare(asked.query, text) for text in texts]
    ranked = sorted(range(len(texts)), key=lambda index: -scores[index])
    results = [
        {"index": index, "document": {"text": texts[index]}, "relevance_score": scores[index]}
        for index in ranked[: asked.top_n or None]
    ]
    return _ENCODE.encode({"id": head.id, "model": head.model, "usage": usage, "results": results})


def answer_tokenize(body: bytes, options: EchoOptions, head: Head) -> bytes:
    """POST /tokenize. A token's id is its word's checksum."""
    asked = read_body(body, _TOKENIZE)
    if asked.prompt is None and asked.messages is None:
        raise InvalidRequestBodyError(reason="`prompt` and `messages` are missing", param="prompt")
    said = [message.text for message in asked.messages or []]
    texts = [asked.prompt] if asked.prompt is not None else said
    words = [word for text in texts for word in split_tokens(text)]
    return _ENCODE.encode(
        {
            "count": len(words),
            "max_model_len": options.context or NO_LIMIT,
            "tokens": [zlib.crc32(word.encode()) for word in words],
            "token_strs": words if asked.return_token_strs else None,
        }
    )


class Route(NamedTuple):
    """One path: what its answers' ids begin with, and what writes them."""

    prefix: str
    answer: Answer


EMBEDDER_ROUTES: Mapping[str, Route] = {
    "/v1/embeddings": Route("embd-", answer_embeddings),
    "/v1/score": Route("score-", answer_score),
    "/v1/rerank": Route("rerank-", answer_rerank),
}
TOKENIZE = Route("tokenize-", answer_tokenize)


def _texts(given: str | list[str | int | list[int]]) -> list[str]:
    """One text per vector; token ids are words of their own."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequestBodyError(reason="`input` is empty", param="input")
    ids = [part for part in given if isinstance(part, int)]
    if len(ids) == len(given):
        return [_words(ids)]
    return [part if isinstance(part, str) else _words(part) for part in given]


def _words(ids: int | list[int]) -> str:
    return " ".join(str(token) for token in ([ids] if isinstance(ids, int) else ids))


def _list(given: str | list[str] | None, name: str) -> list[str]:
    if not given:
        raise InvalidRequestBodyError(reason=f"`{name}` is missing or empty", param=name)
    return [given] if isinstance(given, str) else given


def _count(texts: list[str], options: EchoOptions, param: str) -> Usage:
    """What the texts cost. Raises ContextLengthExceededError: one is longer than the model's context."""
    counts = [len(split_tokens(text)) for text in texts]
    if options.context is not None and max(counts) > options.context:
        raise ContextLengthExceededError(
            reason=f"This model's maximum context length is {options.context} tokens, and a text has "
            f"{max(counts)}. Shorten it.",
            param=param,
        )
    return Usage(prompt_tokens=sum(counts), total_tokens=sum(counts))


def _pack(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _body(head: Head, *, data: list[dict[str, Any]], usage: Usage) -> bytes:
    return _ENCODE.encode(
        {
            "id": head.id,
            "object": "list",
            "created": head.created,
            "model": head.model,
            "data": data,
            "usage": usage,
        }
    )
