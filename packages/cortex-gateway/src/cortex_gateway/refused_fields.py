# SPDX-License-Identifier: GPL-3.0-or-later
"""Which fields of a request does a server refuse that it can be asked without? Pure.

Translations write fields of vLLM and llama-server into chat, which mean nothing to OpenAI's own API and its like. These
refuse a request for a field that they do not know, and name it.
"""

from collections.abc import Mapping

import msgspec

# What it is called by those that refuse it; None: nothing, and the request is asked without.
_OTHER_NAMES = {
    "add_generation_prompt": None,
    "chat_template_kwargs": None,
    "continue_final_message": None,
    "max_tokens": "max_completion_tokens",
}
# As many as one request can be refused for, each by itself.
MAX_ATTEMPTS = len(_OTHER_NAMES)

_READ = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODE = msgspec.json.Encoder()


class Wording:
    """A request in the words that its server takes, as far as is known. It is read only once something is.

    Args:
        body: the request; one that is no JSON object has no fields.
        known: by model, as it is written, the fields that requests for it were refused for.

    Attributes:
        body: the request as it is put.
        model: that it asks for, as it is written.
        refused: the fields that it has not any more, or otherwise called.
    """

    def __init__(self, body: bytes, known: Mapping[bytes, frozenset[str]]) -> None:
        self.body = body
        self.model = b""
        self.refused: frozenset[str] = frozenset()
        self._fields: dict[str, msgspec.Raw] | None = None
        if known:
            self._leave_out(known.get(self._read_model(), frozenset()))

    @property
    def left_out(self) -> list[str]:
        """The fields that the server is not told at all."""
        return sorted(name for name in self.refused if _OTHER_NAMES[name] is None)

    def heed(self, told: bytes) -> bool:
        """Take a refusal in these words; False: it names no field that can be put otherwise."""
        self._read_model()
        named = [name for name, other in _OTHER_NAMES.items() if (other or name).encode() in told]
        return self._leave_out(frozenset(named))

    def _read_model(self) -> bytes:
        if self._fields is None:
            try:
                self._fields = _READ.decode(self.body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._fields = {}
            self.model = bytes(self._fields.get("model", b""))
        return self.model

    def _leave_out(self, names: frozenset[str]) -> bool:
        fields = self._fields or {}
        found = names & fields.keys()
        for name in found:
            value, other = fields.pop(name), _OTHER_NAMES[name]
            if other is not None:
                fields.setdefault(other, value)
        if found:
            self.refused |= found
            self.body = _ENCODE.encode(fields)
        return bool(found)
