# SPDX-License-Identifier: GPL-3.0-or-later
"""The APIs that clients may speak, by path. Pure."""

from cortex_gateway.dialects.anthropic_count import AnthropicCount
from cortex_gateway.dialects.anthropic_messages import AnthropicMessages
from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.openai_chat import OPENAI_CHAT
from cortex_gateway.dialects.openai_completions import OPENAI_COMPLETIONS
from cortex_gateway.dialects.openai_pooling import OPENAI_POOLING
from cortex_gateway.dialects.openai_responses import OPENAI_RESPONSES
from cortex_gateway.dialects.prefix_hygiene import ALL_RULES


def build_dialects(hygiene: frozenset[str] = ALL_RULES) -> dict[str, Dialect]:
    """Path to dialect. `hygiene`: the prefix hygiene rules in force."""
    dialects: list[Dialect] = [
        OPENAI_CHAT,
        OPENAI_COMPLETIONS,
        OPENAI_RESPONSES,
        *OPENAI_POOLING,
        AnthropicMessages(hygiene),
        AnthropicCount(hygiene),
    ]
    return {dialect.path: dialect for dialect in dialects}
