# SPDX-License-Identifier: GPL-3.0-or-later
"""Which events of a stream of chat count as content."""

import pytest

from cortex_gateway.dialects.openai_chat import has_content


@pytest.mark.parametrize(
    ("data", "counts"),
    [
        (b'{"choices":[{"delta":{"content":"a"}}]}', True),
        (b'{"choices":[{"delta":{"content":"","reasoning_content":"a"}}]}', True),
        (b'{"choices":[{"delta":{"reasoning":"a"}}]}', True),
        (b'{"choices":[{"delta":{"refusal":"a"}}]}', True),
        (b'{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}', True),
        (b'{"choices":[{"delta":{"role":"assistant","content":""}}]}', False),
        (b'{"choices":[{"delta":{"content":null,"tool_calls":[]},"finish_reason":"stop"}]}', False),
        (b'{"choices":[],"usage":{"prompt_tokens":1}}', False),
        (b"[DONE]", False),
        (b"{]", False),
    ],
)
def test_what_says_something_counts(data: bytes, counts: bool) -> None:
    assert has_content(data) is counts
