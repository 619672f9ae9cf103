# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import msgspec
import pytest

from cortex_core.errors import InvalidRequestBodyError
from cortex_core.openai import ModelEntry, ModelList
from cortex_gateway.dialects.anthropic_models import Page, read_page, write_list, write_model


def entry(model_id: str, **fields: Any) -> ModelEntry:
    return ModelEntry(
        id=model_id, object="model", created=1_750_000_000, owned_by="x", loaded=True, **fields
    )


MODELS = ModelList(data=[entry(name) for name in "cebda"])


@pytest.mark.parametrize(
    ("query", "page"),
    [
        (b"", Page()),
        (b"limit=1000", Page(limit=1000)),
        (b"limit=2&after_id=org%2Fa&beta=true", Page(limit=2, after_id="org/a")),
        (b"before_id=b", Page(before_id="b")),
    ],
)
def test_a_query_asks_for_a_page(query: bytes, page: Page) -> None:
    assert read_page(query) == page


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "1.5", "²", "9" * 5000])
def test_a_limit_out_of_bounds_is_the_clients_fault(limit: str) -> None:
    with pytest.raises(InvalidRequestBodyError) as caught:
        read_page(f"limit={limit}".encode())
    assert caught.value.param == "limit"


@pytest.mark.parametrize(
    ("page", "ids", "has_more"),
    [
        (Page(), "abcde", False),
        (Page(limit=2), "ab", True),
        (Page(limit=2, after_id="b"), "cd", True),
        (Page(limit=2, after_id="d"), "e", False),
        (Page(limit=2, after_id="bb"), "cd", True),
        (Page(after_id="e"), "", False),
        (Page(limit=2, before_id="e"), "cd", True),
        (Page(limit=2, before_id="c"), "ab", False),
        (Page(before_id="a"), "", False),
    ],
)
def test_a_page_holds_these_models(page: Page, ids: str, has_more: bool) -> None:
    answer = msgspec.json.decode(write_list(MODELS, page))
    assert [one["id"] for one in answer["data"]] == list(ids)
    assert answer["has_more"] is has_more
    assert (answer["first_id"], answer["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


def test_pages_follow_each_other_to_the_end() -> None:
    seen: list[str] = []
    page = Page(limit=2)
    while True:
        answer = msgspec.json.decode(write_list(MODELS, page))
        seen += [one["id"] for one in answer["data"]]
        if not answer["has_more"]:
            break
        page = Page(limit=2, after_id=answer["last_id"])
    assert seen == list("abcde")


def test_a_model_in_anthropics_shape() -> None:
    assert msgspec.json.decode(
        write_model(entry("a", max_model_len=4096, max_output_tokens=512))
    ) == {
        "type": "model",
        "id": "a",
        "display_name": "a",
        "created_at": "2025-06-15T15:06:40Z",
        "lifecycle": "active",
        "max_input_tokens": 4096,
        "max_tokens": 512,
        "capabilities": None,
    }
