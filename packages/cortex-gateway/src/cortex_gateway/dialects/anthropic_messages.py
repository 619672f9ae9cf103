# SPDX-License-Identifier: GPL-3.0-or-later
"""Anthropic's Messages API, served by neurons that speak OpenAI chat; docs/dialects.md says what is carried. Pure."""

from collections.abc import Callable

from cortex_core import openai
from cortex_core.errors import CortexError
from cortex_core.openai import Asked
from cortex_gateway.dialects import prefix_hygiene
from cortex_gateway.dialects.anthropic_request import read_messages
from cortex_gateway.dialects.anthropic_stream import AnthropicStream
from cortex_gateway.dialects.dialect import Notes
from cortex_gateway.dialects.openai_chat import OPENAI_CHAT
from cortex_gateway.usage import Meter


class AskedMessages(Asked, frozen=True, kw_only=True):
    """The narrow look at a request, which had to be translated whole to be looked at.

    Attributes:
        chat: the request as OpenAI chat, for the model the client named.
        dropped: names of what could not be carried, for `x-cortex-dropped`.
        hygiene: names of the prefix hygiene rules that fired.
    """

    chat: bytes
    dropped: list[str]
    hygiene: list[str]


class MeteredMessages:
    """An answer in OpenAI's dialect that is counted, and then translated. Fulfils `Translator`."""

    def __init__(self, meter: Meter, stream: AnthropicStream) -> None:
        self._meter = meter
        self._stream = stream

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        return self._stream.whole(*self._meter.whole(status, body))

    def feed(self, chunk: bytes) -> bytes:
        return self._stream.feed(self._meter.feed(chunk))

    def close(self) -> bytes:
        return self._stream.feed(self._meter.close()) + self._stream.close()

    def fail(self, error: CortexError) -> bytes:
        self._meter.fail(error)  # takes note of it; what it says is in OpenAI's dialect
        return self._stream.fail(error)


class AnthropicMessages:
    """POST /v1/messages.

    Args:
        rules: the prefix hygiene rules in force.
    """

    name = "anthropic_messages"
    path = "/v1/messages"
    upstream_path = OPENAI_CHAT.path

    def __init__(self, rules: frozenset[str] = prefix_hygiene.ALL_RULES) -> None:
        self._rules = rules

    def read(self, body: bytes) -> AskedMessages:
        translated = read_messages(body, self._rules)
        return AskedMessages(
            model=translated.model,
            stream=translated.stream,
            chat=translated.body,
            dropped=translated.dropped,
            hygiene=translated.hygiene,
        )

    def write(self, body: bytes, asked: Asked, model_id: str) -> bytes:
        asked = asked if isinstance(asked, AskedMessages) else self.read(body)
        return asked.chat if asked.model == model_id else openai.rename_model(asked.chat, model_id)

    def meter(self, upstream: str, now: Callable[[], float]) -> Meter:
        return OPENAI_CHAT.meter(upstream, now)

    def notes(self, asked: Asked) -> Notes:
        return Notes(asked.dropped, asked.hygiene) if isinstance(asked, AskedMessages) else Notes()

    def translate(self, meter: Meter, request_id: str) -> MeteredMessages:
        return MeteredMessages(meter, AnthropicStream(meter.upstream, request_id))
