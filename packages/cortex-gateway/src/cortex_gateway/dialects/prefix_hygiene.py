# SPDX-License-Identifier: GPL-3.0-or-later
"""Which lines of a system prompt change from request to request and mean nothing to a model.

A prefix cache reuses a prompt up to the first token that differs. What a client puts at the very start and
changes each time costs a whole prefill per request. Each rule here takes out one such thing, can be
switched off in `[prefix_hygiene]`, and is counted when it fires. Nothing else in a prompt is touched.

To add one: a row in `RULES`. Pure.
"""

import re

import msgspec


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is taken out.

    Attributes:
        name: as in the configuration and the metric.
        why: who sends it, and what it costs.
        pattern: what is taken out of the start of a system text.
    """

    name: str
    why: str
    pattern: re.Pattern[str]


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            name="claude_code_billing_header",
            why="Claude Code's first system text is a billing line with a version and a checksum; it differs"
            " between conversations, so that no two of them share a prefix.",
            pattern=re.compile(r"x-anthropic-billing-header:[^\r\n]*(?:\r?\n)*"),
        ),
    )
}
ALL_RULES = frozenset(RULES)


def clean_system(texts: list[str], enabled: frozenset[str]) -> tuple[list[str], list[str]]:
    """The system texts without what the enabled rules take out, and the names of the rules that fired.

    A text of which nothing remains is left out.
    """
    fired = []
    for rule in (rule for name, rule in RULES.items() if name in enabled):
        matches = [rule.pattern.match(text) for text in texts]
        if any(matches):
            fired.append(rule.name)
            texts = [
                text[match.end() if match else 0 :]
                for text, match in zip(texts, matches, strict=True)
            ]
    return [text for text in texts if text], fired
