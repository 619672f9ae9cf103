# SPDX-License-Identifier: GPL-3.0-or-later
"""What is answered in one piece: vectors, scores, ranks and tokens of texts. Pure."""

from cortex_gateway.dialects.verbatim import Verbatim


def has_content(data: bytes) -> bool:
    """Nothing is said here, so nothing streams."""
    return False


class Pooling(Verbatim):
    """An API whose answers are whole."""

    ping: bytes | None = None


OPENAI_POOLING = (
    Pooling("openai_embeddings", "/v1/embeddings", has_content),
    Pooling("openai_score", "/v1/score", has_content),
    Pooling("openai_rerank", "/v1/rerank", has_content),
    Pooling("openai_tokenize", "/tokenize", has_content),
)
