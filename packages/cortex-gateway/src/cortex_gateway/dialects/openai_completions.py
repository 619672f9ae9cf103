# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's completions: which events of its streams hold content? Pure."""

import msgspec

from cortex_gateway.dialects.verbatim import Verbatim


class _Choice(msgspec.Struct, frozen=True):
    text: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []


_READ = msgspec.json.Decoder(_Chunk)


def has_content(data: bytes) -> bool:
    """Whether there is text in it."""
    try:
        return any(choice.text for choice in _READ.decode(data).choices)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


OPENAI_COMPLETIONS = Verbatim("openai_completions", "/v1/completions", has_content)
