# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's format is known by its markers and its template, never by its name."""

import pytest

from neuron.host.engines.vllm_parsers import MARKERS, OURS, Parsers, choose_parsers

THINK = {"<think>", "</think>"}
CALL = {"<tool_call>"}
DEEPSEEK = next(marker for marker in MARKERS if "begin" in marker and "section" not in marker)
HERMES = "{% if tools %}<tools>{% endif %}<tool_call>\n{'name': ...}\n</tool_call>"
SWITCH = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
XML = "<tool_call>\n<function={{ name }}>\n<parameter="


@pytest.mark.parametrize(
    ("markers", "template", "tool", "reasoning"),
    [
        (set(), "", None, None),
        (set(), "{{ messages }}", None, None),
        (CALL, HERMES, "hermes", None),
        (set(), HERMES, "hermes", None),
        (THINK | CALL, HERMES + SWITCH, "hermes", OURS),
        (THINK | CALL, XML + SWITCH, "qwen3_coder", OURS),
        (THINK, "{{ messages }}<think>\n", None, OURS),
        (THINK, "{{ messages }}", None, OURS),
        ({"<think>"}, SWITCH, None, None),  # without a closer nothing can be told apart
        ({"[TOOL_CALLS]"}, "", "mistral", None),
        ({"[TOOL_CALLS]", "[THINK]", "[/THINK]"}, "", "mistral", OURS),
        ({"<|python_tag|>"}, "{% if tools %}{% endif %}", "llama3_json", None),
        ({"<|python_tag|>"}, "{{ messages }}", None, None),
        ({"<|tool_calls_section_begin|>"}, "", "kimi_k2", None),
        ({DEEPSEEK} | THINK, "```json", "deepseek_v3", OURS),
        ({DEEPSEEK} | THINK, "", "deepseek_v31", OURS),
        (CALL | THINK, "<tool_call>{{ name }}<arg_key>" + SWITCH, "glm45", OURS),
        (set(), "<minimax:tool_call>", "minimax_m2", None),
        ({"<|tool_call|>"}, "{{ tools }}", "granite", None),
        ({"<thought>", "</thought>"}, "", None, OURS),
    ],
)
def test_parsers_follow_from_markers_and_template(
    markers: set[str], template: str, tool: str | None, reasoning: str | None
) -> None:
    chosen = choose_parsers(markers, template)
    assert (chosen.tool, chosen.reasoning) == (tool, reasoning)


def test_the_first_pair_that_is_whole_is_the_one() -> None:
    markers = {"<think>", "[THINK]", "[/THINK]", "<reasoning>", "</reasoning>"}
    assert choose_parsers(markers, "") == Parsers(None, OURS, ("[THINK]", "[/THINK]"))
