# SPDX-License-Identifier: GPL-3.0-or-later
"""The content blocks of Anthropic's messages. Pure."""

from typing import Any, NamedTuple

from cortex_gateway.dialects.fields import require


class Block(NamedTuple):
    """One content block. `path` is where it stands in the client's body, for errors."""

    path: str
    kind: str
    fields: dict[str, Any]


def read_blocks(content: object, path: str) -> list[Block]:
    """A message's content, or a part's, as blocks. A string is short for one block of text."""
    if isinstance(content, str):
        return [Block(path, "text", {"type": "text", "text": content})]
    blocks = []
    for number, item in enumerate(require(content, list, path)):
        at = f"{path}.{number}"
        fields = require(item, dict, at)
        blocks.append(Block(at, require(fields.get("type"), str, f"{at}.type"), fields))
    return blocks
