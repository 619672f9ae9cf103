# SPDX-License-Identifier: GPL-3.0-or-later
"""How model ids are split."""

import pytest

from cortex_core.sources import read_model_name


@pytest.mark.parametrize(
    ("model_id", "scheme", "bare"),
    [
        ("org/name", None, "org/name"),
        ("helexa:org/name", "helexa", "org/name"),
        ("huggingface:org/name:q4", "huggingface", "org/name:q4"),
        ("qwen2.5:7b", None, "qwen2.5:7b"),
        ("name", None, "name"),
        ("http://host/x", None, "http://host/x"),
        ("Org/name:tag/x", None, "Org/name:tag/x"),
        (":org/name", None, ":org/name"),
    ],
)
def test_a_scheme_is_what_stands_before_a_repository(
    model_id: str, scheme: str | None, bare: str
) -> None:
    assert read_model_name(model_id) == (scheme, bare)
