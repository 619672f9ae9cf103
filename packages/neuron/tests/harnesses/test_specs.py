# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from cortex_core.errors import LoadRefusedError
from neuron.harnesses.specs import check_spec


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_id": ""}, "1 to 512 characters"),
        ({"model_id": "x" * 513}, "1 to 512 characters"),
        ({"model_id": "a\nb"}, "can be printed"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0"),
        ({"kv_cache_mb": -1}, "kv_cache_mb is -1"),
        ({"max_model_len": 0}, "max_model_len is 0"),
    ],
)
def test_what_no_engine_can_be_asked_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadRefusedError, match=reason) as caught:
        check_spec(ModelSpec(**{"model_id": "a", **fields}))
    assert caught.value.facts["load_kind"] == "invalid_spec"
    assert len(caught.value.message) < 1000


def test_anything_else_is_left_to_the_harness() -> None:
    check_spec(ModelSpec(model_id="a/b", tensor_parallel=2, kv_cache_mb=64))
