# SPDX-License-Identifier: GPL-3.0-or-later
"""What the dialects share that neurons do not speak: a request is translated when it is read, an answer as it comes. Pure."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from cortex_core import openai
from cortex_core.errors import CortexError
from cortex_core.openai import Asked
from cortex_gateway.dialects.dialect import Dialect, Notes, Translator
from cortex_gateway.dialects.openai_chat import OPENAI_CHAT
from cortex_gateway.usage import Meter


class AskedTranslated(Asked, frozen=True, kw_only=True):
    """The narrow look at a request, which had to be translated whole to be looked at.

    Attributes:
        body: the request as the upstream gets it, for the model the client named.
        dropped: names of what could not be carried, for `x-cortex-dropped`.
        hygiene: names of the prefix hygiene rules that fired.
        told: fields of the request that the answer tells again.
    """

    body: bytes
    dropped: list[str]
    hygiene: list[str] = []
    told: dict[str, Any] = {}


class FromChat(Translator, Protocol):
    """A translator that can tell a chunk that is another one over again but for its text."""

    def feed_alike(self, chunk: bytes) -> bytes | None:
        """As `feed`, for such a chunk; None: it is none, and was not taken."""


class Metered:
    """An answer in OpenAI's dialect that is counted, and then translated. Fulfils `Translator`."""

    def __init__(self, meter: Meter, translator: FromChat) -> None:
        self._meter = meter
        self._translator = translator

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        return self._translator.whole(*self._meter.whole(status, body))

    def feed(self, chunk: bytes) -> bytes:
        # What is like a chunk that was read needs no reading, neither for its meaning nor for its count.
        if self._meter.is_flowing and (out := self._translator.feed_alike(chunk)) is not None:
            self._meter.note_content()
            return out
        return self._translator.feed(self._meter.feed(chunk))

    def close(self) -> bytes:
        return self._translator.feed(self._meter.close()) + self._translator.close()

    def fail(self, error: CortexError) -> bytes:
        self._meter.fail(error)  # takes note of it; what it says is in OpenAI's dialect
        return self._translator.fail(error)


class TranslatedDialect(ABC):
    """A dialect that is put to neurons as OpenAI chat."""

    upstream_path = OPENAI_CHAT.path
    may_load = True
    ping: bytes | None = b""
    without_route: Dialect | None = None

    @abstractmethod
    def read(self, body: bytes) -> AskedTranslated:
        """The request, translated. Raises as `Dialect.read`."""

    @abstractmethod
    def open(self, meter: Meter, request_id: str, asked: AskedTranslated) -> FromChat:
        """What translates the answer, once it was metered."""

    def write(self, body: bytes, asked: Asked, model_id: str) -> bytes:
        asked = self._translated(body, asked)
        return asked.body if asked.model == model_id else openai.rename_model(asked.body, model_id)

    def meter(self, upstream: str, now: Callable[[], float]) -> Meter:
        return OPENAI_CHAT.meter(upstream, now)

    def notes(self, asked: Asked) -> Notes:
        if isinstance(asked, AskedTranslated):
            return Notes(asked.dropped, asked.hygiene)
        return Notes()

    def translate(self, meter: Meter, request_id: str, asked: Asked) -> Translator:
        asked = self._translated(b"", asked)
        return Metered(meter, self.open(meter, request_id, asked))

    def _translated(self, body: bytes, asked: Asked) -> AskedTranslated:
        return asked if isinstance(asked, AskedTranslated) else self.read(body)
