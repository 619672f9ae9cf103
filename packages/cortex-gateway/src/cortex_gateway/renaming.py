# SPDX-License-Identifier: GPL-3.0-or-later
"""What does an answer call its model, where its node has it under another id than the catalogue? Pure."""

import msgspec

from cortex_core.errors import CortexError
from cortex_gateway.dialects.dialect import Translator

_ENCODE = msgspec.json.Encoder()
# The two ways of writing JSON that are in use. Inside of texts the quotes are escaped.
_KEYS = (b'"model":', b'"model": ')


class Renamed:
    """A Translator whose answers call a model otherwise. What it gives out are whole events, so no name is cut in two."""

    def __init__(self, passing: Translator, model_id: str, model: str) -> None:
        was, now = _ENCODE.encode(model_id), _ENCODE.encode(model)
        self._passing = passing
        self._tight, self._spaced = ((key + was, key + now) for key in _KEYS)

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        status, body = self._passing.whole(status, body)
        return status, self._rename(body)

    def feed(self, chunk: bytes) -> bytes:
        return self._rename(self._passing.feed(chunk))

    def close(self) -> bytes:
        return self._rename(self._passing.close())

    def fail(self, error: CortexError) -> bytes:
        return self._rename(self._passing.fail(error))

    def _rename(self, data: bytes) -> bytes:
        return data.replace(*self._tight).replace(*self._spaced)
