# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from neuron.costs import MAX_MODELS, Cost, Costs

SPEC = ModelSpec(model_id="a", tensor_parallel=2, engine_args={"enforce_eager": True})


def measured() -> Costs:
    costs = Costs()
    costs.note_cache("a", 3000)
    costs.note_memory(SPEC, {0: 8000, 1: 8500}, 900)
    return costs


def test_what_was_never_measured_has_no_costs() -> None:
    assert Costs().find("a") == Cost()
    assert Costs().fixed_mb(SPEC) is None


def test_each_figure_is_the_last_one_and_leaves_the_others() -> None:
    costs = Costs()
    costs.note_load("a", 1.0)
    costs.note_load("a", 2.0)
    costs.note_wake("a", 3.0)
    costs.note_sleep("a", 4.0)
    costs.note_unload("a", 5.0)
    assert costs.find("a") == Cost(load_s=2.0, wake_s=3.0, sleep_s=4.0, unload_s=5.0)
    assert costs.revision == 5


def test_a_rank_takes_of_its_device_what_is_not_its_cache() -> None:
    assert measured().fixed_mb(SPEC) == 5500


@pytest.mark.parametrize(
    ("changes", "fixed_mb"),
    [
        ({"max_model_len": 10}, 5500),
        ({"kv_cache_mb": 10}, 5500),
        ({"devices": [1, 0]}, 5500),
        ({"tensor_parallel": 1}, None),
        ({"tensor_parallel": None}, None),
        ({"quant": "fp8"}, None),
        ({"dtype": "float16"}, None),
        ({"engine_args": None}, None),
        ({"model_id": "b"}, None),
    ],
)
def test_a_measurement_is_of_the_fields_that_matter(
    changes: dict[str, Any], fixed_mb: int | None
) -> None:
    fields = {name: getattr(SPEC, name) for name in ModelSpec.__struct_fields__}
    assert measured().fixed_mb(ModelSpec(**{**fields, **changes})) == fixed_mb


def test_what_clients_write_into_a_spec_beside_is_not_kept() -> None:
    costs = Costs()
    costs.note_memory(ModelSpec(model_id="a", quant="fp8", chat_template="long"), {0: 1}, None)
    assert costs.find("a").spec == ModelSpec(model_id="a", quant="fp8")


def test_the_most_counts_and_small_changes_are_no_news() -> None:
    costs = measured()
    before = costs.revision
    costs.note_memory(SPEC, {0: 8010, 1: 7000}, 905)
    assert costs.revision == before
    costs.note_memory(SPEC, {0: 8100, 1: 7000}, 905)
    assert costs.find("a").vram_mb == {0: 8100, 1: 8500}
    assert costs.find("a").host_ram_mb == 905
    assert costs.revision == before + 1


def test_another_spec_or_cache_is_measured_anew() -> None:
    costs = measured()
    costs.note_load("a", 9.0)
    costs.note_cache("a", 1000)
    costs.note_memory(SPEC, {0: 6000, 1: 6000}, 800)
    assert costs.find("a") == Cost(
        spec=ModelSpec(model_id="a", engine_args={"enforce_eager": True}),
        kv_cache_mb=1000,
        load_s=9.0,
        vram_mb={0: 6000, 1: 6000},
        host_ram_mb=800,
    )


def test_the_ranks_are_those_that_were_measured_whoever_chose_them() -> None:
    unsaid = ModelSpec(model_id="a", engine_args={"enforce_eager": True})
    costs = Costs()
    costs.note_cache("a", 3000)
    costs.note_memory(unsaid, {0: 8000, 1: 8500}, 900)
    assert (costs.ranks(unsaid), costs.ranks(SPEC), costs.ranks(ModelSpec(model_id="a"))) == (
        2,
        2,
        None,
    )
    assert (costs.fixed_mb(unsaid), costs.fixed_mb(SPEC)) == (None, 5500)
    costs.note_memory(unsaid, {1: 12_000}, 900)
    assert (costs.ranks(unsaid), costs.fixed_mb(unsaid)) == (1, 9000)


def test_what_is_not_told_is_not_known() -> None:
    costs = Costs()
    costs.note_memory(SPEC, {}, None)
    costs.note_memory(SPEC, {}, None)
    assert costs.fixed_mb(SPEC) is None
    assert costs.find("a").host_ram_mb is None


def test_the_oldest_is_forgotten() -> None:
    costs = Costs()
    for number in range(MAX_MODELS):
        costs.note_load(f"m{number}", 1.0)
    costs.note_load("m0", 1.0)
    costs.note_load("new", 1.0)
    assert len(costs.all()) == MAX_MODELS
    assert "m1" not in costs.all()
    assert "m0" in costs.all()


def test_unloads_and_wakes_are_cycles_and_a_reload_begins_them_anew() -> None:
    costs = Costs()
    costs.note_load("a", 1.0)
    costs.note_sleep("a", 1.0)
    assert costs.cycles == 0
    costs.note_wake("a", 1.0)
    costs.note_unload("b", 1.0)
    assert costs.cycles == 2
    before = costs.revision
    costs.note_reload()
    assert costs.cycles == 0
    assert costs.revision > before
