# SPDX-License-Identifier: GPL-3.0-or-later
"""How the list of models is told in Anthropic's shape, page by page.

Entries come in the order of their ids, so that a cursor still means the same when a model came or went
between two pages. Pure.
"""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from cortex_core.errors import InvalidRequestBodyError
from cortex_core.openai import ModelEntry, ModelList

DEFAULT_LIMIT = 20
MAX_LIMIT = 1000

_ENCODE = msgspec.json.Encoder()


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of the list a client asks for.

    Attributes:
        limit: entries at most.
        after_id: those behind it; None: from the start.
        before_id: those right before it; None: not asked for. Counts where both are given.
    """

    limit: int = DEFAULT_LIMIT
    after_id: str | None = None
    before_id: str | None = None


def read_page(query: bytes) -> Page:
    """The page that a query string asks for; other parameters are not looked at.

    Raises:
        InvalidRequestBodyError: `limit` is no number from 1 to 1000. The client's fault.
    """
    fields = dict(parse_qsl(query.decode("latin-1")))
    limit = fields.get("limit", str(DEFAULT_LIMIT))
    if (
        not (limit.isascii() and limit.isdigit() and len(limit) < 6)
        or not 1 <= int(limit) <= MAX_LIMIT
    ):
        reason = f"`limit` must be a number from 1 to {MAX_LIMIT}"
        raise InvalidRequestBodyError(reason=reason, param="limit")
    return Page(
        limit=int(limit), after_id=fields.get("after_id"), before_id=fields.get("before_id")
    )


def write_list(models: ModelList, page: Page) -> bytes:
    """One page of GET /v1/models."""
    entries = sorted(models.data, key=lambda entry: entry.id)
    if page.before_id is not None:
        found = [entry for entry in entries if entry.id < page.before_id]
        shown = found[-page.limit :]
    else:
        found = [entry for entry in entries if page.after_id is None or entry.id > page.after_id]
        shown = found[: page.limit]
    answer = {
        "data": [_write_entry(entry) for entry in shown],
        "has_more": len(found) > len(shown),
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
    }
    return _ENCODE.encode(answer)


def write_model(entry: ModelEntry) -> bytes:
    """The answer of GET /v1/models/{id}."""
    return _ENCODE.encode(_write_entry(entry))


def _write_entry(entry: ModelEntry) -> dict[str, Any]:
    return {
        "type": "model",
        "id": entry.id,
        "display_name": entry.id,
        "created_at": datetime.fromtimestamp(entry.created, UTC),
        "lifecycle": "active",
        "max_input_tokens": entry.max_model_len,
        "max_tokens": entry.max_output_tokens,
        "capabilities": None,
    }
