# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of vLLM's parsers understands a model, by the tokenizer's markers and the chat template. Pure.

No model is named: a format is known by what it is written with.
"""

from collections.abc import Callable, Set
from typing import NamedTuple

# The first pair of which each is one token is the model's.
THINKING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)
# What our own reader of reasoning is registered as with vLLM.
OURS = "markers"
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

    `reasoning` is OURS unless an operator names one of vLLM's.
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


class CallFormat(NamedTuple):
    """How a model writes a tool call.

    Attributes:
        opener: what each begins with.
        closer: what none is whole without.
        separator: a token between name and arguments; None: the format has none.
    """

    opener: str
    closer: str
    separator: str | None = None


# By the parser's name, where each call has an opener of its own.
CALL_FORMATS = {
    "hermes": CallFormat("<tool_call>", "}"),
    "qwen3_coder": CallFormat("<tool_call>", "</function>"),
    "glm45": CallFormat("<tool_call>", "</tool_call>"),
    "mistral": CallFormat("[TOOL_CALLS]", "}", "[ARGS]"),
    "kimi_k2": CallFormat("<|tool_call_begin|>", "}"),
    "minimax_m2": CallFormat("<invoke", "</invoke>"),
    "seed_oss": CallFormat("<seed:tool_call>", "</function>"),
}


def choose_parsers(markers: Set[str], template: str) -> Parsers:
    """The parsers for a model.

    Args:
        markers: those of MARKERS that the tokenizer has as one token.
        template: the chat template's text; empty: none.
    """
    tool = next((name for name, fits in _TOOL_RULES if fits(markers, template)), None)
    thinking = next((pair for pair in THINKING if markers >= set(pair)), None)
    return Parsers(tool, OURS if thinking else None, thinking)
