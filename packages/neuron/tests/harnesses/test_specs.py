# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from cortex_core.errors import LoadRefusedError
from neuron.harnesses.specs import check_spec, conflicts


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_id": ""}, "1 to 512 characters"),
        ({"model_id": "x" * 513}, "1 to 512 characters"),
        ({"model_id": "a\nb"}, "can be printed"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0"),
        ({"kv_cache_mb": -1}, "kv_cache_mb is -1"),
        ({"max_model_len": 0}, "max_model_len is 0"),
        ({"engine_args": {"max_num_seqs": 0}}, r"engine_args\.max_num_seqs is 0, and must be at"),
        ({"engine_args": {"max_num_batched_tokens": -1}}, "max_num_batched_tokens is -1"),
    ],
)
def test_what_no_engine_can_be_asked_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadRefusedError, match=reason) as caught:
        check_spec(ModelSpec(**{"model_id": "a", **fields}))
    assert caught.value.facts["load_kind"] == "invalid_spec"
    assert len(caught.value.message) < 1000


def test_anything_else_is_left_to_the_harness() -> None:
    check_spec(ModelSpec(model_id="a/b", tensor_parallel=2, kv_cache_mb=64))
    check_spec(ModelSpec(model_id="a/b", engine_args={"max_num_seqs": "8", "seed": 0}))


@pytest.mark.parametrize(
    ("asked", "there", "differs"),
    [
        ({}, {}, []),
        ({"tensor_parallel": 1, "devices": [0], "max_model_len": 4096}, {}, []),
        ({"tensor_parallel": 2, "devices": ["0"], "max_model_len": 8}, {}, None),
        ({"lora": {}, "engine_args": {}}, {}, []),
        ({}, {"lora": {}}, []),
        ({"lora": {"a": "org/a"}}, {"lora": {}}, ["lora"]),
        ({"dtype": "float16"}, {}, ["dtype"]),
        ({}, {"tensor_parallel": 1}, ["tensor_parallel"]),
        ({"max_model_len": 4096}, {"max_model_len": 9000}, ["max_model_len"]),
        ({"model_id": "hub:org/a"}, {}, ["model_id"]),
        ({}, {"model_id": "hub:org/a"}, []),
    ],
)
def test_what_runs_is_no_other_for_being_named(
    asked: dict[str, Any], there: dict[str, Any], differs: list[str] | None
) -> None:
    decided = {"tensor_parallel": 1, "devices": [0], "max_model_len": 4096}
    wanted, resident = (ModelSpec(**{"model_id": "org/a", **fields}) for fields in (asked, there))
    assert conflicts(wanted, resident, decided) == (list(asked) if differs is None else differs)
