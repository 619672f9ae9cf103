# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of vLLM's parsers understands a model, by the tokenizer's markers and the chat template. Pure.

No model is named: a format is known by what it is written with.
"""

import re
from collections.abc import Callable, Set
from typing import NamedTuple

# The first pair of which each is one token is the model's.
THINKING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)
# DeepSeek writes its markers with a full-width bar, and a block for the space.
_DEEPSEEK = "<\uff5ctool\u2581calls\u2581begin\uff5c>"
# All words of which it matters whether they are one token.
MARKERS = frozenset(
    [marker for pair in THINKING for marker in pair]
    + """
    <tool_call> [TOOL_CALLS] <|python_tag|> <|tool_call|> <|action_start|> <|tool_call_start|> <minimax:tool_call>
    <|tool_calls_section_begin|> <seed:tool_call> <arg_key>
    """.split()
    + [_DEEPSEEK]
)


class Parsers(NamedTuple):
    """vLLM's names of parsers; None: the model has no such format, or one not known here.

    `thinking` is the pair of markers around reasoning; None: the model does not think.
    """

    tool: str | None
    reasoning: str | None
    thinking: tuple[str, str] | None


Rule = tuple[str, Callable[[Set[str], str], bool]]

# In this order: what is more specific comes first.
_TOOL_RULES: tuple[Rule, ...] = (
    ("mistral", lambda markers, _: "[TOOL_CALLS]" in markers),
    ("kimi_k2", lambda markers, _: "<|tool_calls_section_begin|>" in markers),
    ("minimax_m2", lambda _, template: "<minimax:tool_call>" in template),
    ("seed_oss", lambda _, template: "<seed:tool_call>" in template),
    (
        "deepseek_v31",
        lambda markers, template: _DEEPSEEK in markers and "```json" not in template,
    ),
    ("deepseek_v3", lambda markers, _: _DEEPSEEK in markers),
    ("glm45", lambda _, template: "<arg_key>" in template),
    ("qwen3_coder", lambda _, template: "<function=" in template),
    ("hermes", lambda _, template: "<tool_call>" in template),
    ("llama3_json", lambda markers, template: "<|python_tag|>" in markers and "tools" in template),
    ("granite", lambda markers, template: "<|tool_call|>" in markers and "tools" in template),
    ("lfm2", lambda markers, _: "<|tool_call_start|>" in markers),
    ("internlm", lambda markers, _: "<|action_start|>" in markers),
)

# vLLM's words for "the template has a switch for thinking".
_SWITCH = re.compile(r"\benable_thinking\b")


def choose_parsers(markers: Set[str], template: str) -> Parsers:
    """The parsers for a model.

    Args:
        markers: those of MARKERS that the tokenizer has as one token.
        template: the chat template's text; empty: none.
    """
    tool = next((name for name, fits in _TOOL_RULES if fits(markers, template)), None)
    thinking = next((pair for pair in THINKING if markers >= set(pair)), None)
    return Parsers(tool, _choose_reasoning(thinking, template), thinking)


def _choose_reasoning(thinking: tuple[str, str] | None, template: str) -> str | None:
    if thinking is None:
        return None
    if thinking[0] == "[THINK]":
        return "mistral"
    if thinking[0] != "<think>":
        return None
    # With a switch a prompt may say that there is no reasoning, and the answer is then all content; without
    # one the template opens the block itself, or the model always does.
    return "qwen3" if _SWITCH.search(template) else "deepseek_r1"
