# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's Responses for an upstream that speaks chat alone; docs/dialects.md says what is carried. Pure."""

from cortex_gateway.dialects.responses_request import read_response_request
from cortex_gateway.dialects.responses_stream import ResponsesStream
from cortex_gateway.dialects.translated import AskedTranslated, FromChat, TranslatedDialect
from cortex_gateway.usage import Meter


class ResponsesByChat(TranslatedDialect):
    """POST /v1/responses, translated."""

    name = "openai_responses_by_chat"
    path = "/v1/responses"

    def read(self, body: bytes) -> AskedTranslated:
        translated = read_response_request(body)
        return AskedTranslated(
            model=translated.model,
            stream=translated.stream,
            body=translated.body,
            dropped=translated.dropped,
            told=translated.told,
        )

    def open(self, meter: Meter, request_id: str, asked: AskedTranslated) -> FromChat:
        return ResponsesStream(meter.upstream, request_id, asked.told, asked.model or "")
