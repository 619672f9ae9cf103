# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's chat completions: which events of its streams hold content? Pure."""

import msgspec

from cortex_gateway.dialects.verbatim import Verbatim


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []


_READ = msgspec.json.Decoder(_Chunk)


def has_content(data: bytes) -> bool:
    """Whether the model said, thought, refused or called something in it; the role chunk is none of that."""
    try:
        choices = _READ.decode(data).choices
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return any(
        d.content or d.reasoning_content or d.reasoning or d.refusal or d.tool_calls
        for d in (choice.delta for choice in choices)
    )


OPENAI_CHAT = Verbatim("openai_chat", "/v1/chat/completions", has_content)
