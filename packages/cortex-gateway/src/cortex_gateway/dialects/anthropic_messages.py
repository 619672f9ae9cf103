# SPDX-License-Identifier: GPL-3.0-or-later
"""Anthropic's Messages API, served by neurons that speak OpenAI chat; docs/dialects.md says what is carried. Pure."""

from cortex_gateway.dialects import prefix_hygiene
from cortex_gateway.dialects.anthropic_events import PING
from cortex_gateway.dialects.anthropic_request import read_messages
from cortex_gateway.dialects.anthropic_stream import AnthropicStream
from cortex_gateway.dialects.translated import AskedTranslated, FromChat, TranslatedDialect
from cortex_gateway.usage import Meter


class AnthropicMessages(TranslatedDialect):
    """POST /v1/messages.

    Args:
        rules: the prefix hygiene rules in force.
    """

    name = "anthropic_messages"
    path = "/v1/messages"
    ping: bytes | None = PING

    def __init__(self, rules: frozenset[str] = prefix_hygiene.ALL_RULES) -> None:
        self._rules = rules

    def read(self, body: bytes) -> AskedTranslated:
        translated = read_messages(body, self._rules)
        return AskedTranslated(
            model=translated.model,
            stream=translated.stream,
            body=translated.body,
            dropped=translated.dropped,
            hygiene=translated.hygiene,
        )

    def open(self, meter: Meter, request_id: str, asked: AskedTranslated) -> FromChat:
        return AnthropicStream(meter.upstream, request_id)
