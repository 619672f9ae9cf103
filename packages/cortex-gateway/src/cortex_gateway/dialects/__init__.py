# SPDX-License-Identifier: GPL-3.0-or-later
"""The APIs that clients may speak, by path. Pure."""

from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.openai_chat import OPENAI_CHAT
from cortex_gateway.dialects.openai_completions import OPENAI_COMPLETIONS

_ALL: tuple[Dialect, ...] = (OPENAI_CHAT, OPENAI_COMPLETIONS)
DIALECTS: dict[str, Dialect] = {dialect.path: dialect for dialect in _ALL}
