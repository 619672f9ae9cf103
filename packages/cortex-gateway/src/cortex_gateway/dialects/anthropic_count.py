# SPDX-License-Identifier: GPL-3.0-or-later
"""How many tokens a message of Anthropic's API would have, by the model's own template and tokenizer.

The neuron is asked for the tokens of the very prompt that `/v1/messages` would send it. Pure.
"""

import msgspec

from cortex_core import anthropic
from cortex_core.errors import CortexError, UpstreamProtocolError
from cortex_gateway.dialects import prefix_hygiene
from cortex_gateway.dialects.anthropic_request import read_count
from cortex_gateway.dialects.anthropic_response import write_upstream_error
from cortex_gateway.dialects.translated import AskedTranslated, FromChat, TranslatedDialect
from cortex_gateway.usage import Meter


class _Tokens(msgspec.Struct, frozen=True):
    count: int


_READ = msgspec.json.Decoder(_Tokens)
_ENCODE = msgspec.json.Encoder()


class Counted:
    """The answer on its way: the tokens become their number. Fulfils `Translator`; nothing streams here."""

    def __init__(self, upstream: str, request_id: str) -> None:
        self._upstream = upstream
        self._request_id = request_id

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Raises UpstreamProtocolError: the answer has no count."""
        if status >= 400:
            told = write_upstream_error(status, body, self._request_id)
            return anthropic.status_of(status), told
        try:
            tokens = _READ.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._broken(str(error)) from None
        return status, _ENCODE.encode({"input_tokens": tokens.count})

    def feed(self, chunk: bytes) -> bytes:
        raise self._broken("a stream of tokens")

    def feed_alike(self, chunk: bytes) -> None:
        return None

    def close(self) -> bytes:
        raise self._broken("an empty stream")

    def fail(self, error: CortexError) -> bytes:
        return anthropic.write_error(error, self._request_id)

    def _broken(self, reason: str) -> UpstreamProtocolError:
        return UpstreamProtocolError(upstream=self._upstream, reason=reason)


class AnthropicCount(TranslatedDialect):
    """POST /v1/messages/count_tokens.

    Args:
        rules: the prefix hygiene rules in force.
    """

    name = "anthropic_count_tokens"
    path = "/v1/messages/count_tokens"
    upstream_path = "/tokenize"
    may_load = False

    def __init__(self, rules: frozenset[str] = prefix_hygiene.ALL_RULES) -> None:
        self._rules = rules

    def read(self, body: bytes) -> AskedTranslated:
        translated = read_count(body, self._rules)
        return AskedTranslated(
            model=translated.model,
            stream=False,
            body=translated.body,
            dropped=translated.dropped,
            hygiene=translated.hygiene,
        )

    def open(self, meter: Meter, request_id: str, asked: AskedTranslated) -> FromChat:
        return Counted(meter.upstream, request_id)
