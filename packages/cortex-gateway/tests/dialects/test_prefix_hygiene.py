# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from cortex_gateway.dialects.prefix_hygiene import ALL_RULES, clean_system

LINE = "x-anthropic-billing-header: cc_version=2.1.197.9fe; cc_entrypoint=sdk-cli;"
RULE = "claude_code_billing_header"


@pytest.mark.parametrize(
    ("texts", "left", "fired"),
    [
        ([], [], []),
        (["You help."], ["You help."], []),
        ([LINE, "You help."], ["You help."], [RULE]),
        ([LINE + "\r\n\nYou help.\n"], ["You help.\n"], [RULE]),
        (["You help.", LINE], ["You help."], [RULE]),
        ([LINE, LINE], [], [RULE]),
        # Somebody talks about it: that is part of the prompt.
        (["See\n" + LINE], ["See\n" + LINE], []),
        ([" " + LINE], [" " + LINE], []),
    ],
)
def test_the_billing_line_is_taken_out(texts: list[str], left: list[str], fired: list[str]) -> None:
    assert clean_system(texts, ALL_RULES) == (left, fired)


def test_a_rule_that_is_switched_off_does_nothing() -> None:
    assert clean_system([LINE, "You help."], frozenset()) == ([LINE, "You help."], [])
