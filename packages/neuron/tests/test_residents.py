# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from cortex_core.control import ModelSpec
from cortex_core.node import Limits, ModelStatus, Progress
from neuron.host.messages import Activity, Phase, Ready
from neuron.lifecycle import IllegalMoveError
from neuron.residents import MAX_FAILED, Failure, Resident, Residents

DIED = Failure(kind="engine_died", reason="it was killed")


def spec(model_id: str) -> ModelSpec:
    return ModelSpec(model_id=model_id, harness="echo")


def loaded(*model_ids: str) -> Residents:
    residents = Residents()
    for model_id in model_ids:
        residents.note_load(spec(model_id), 10.0)
        residents.note_ready(model_id, Ready(), 12.5, 1000)
    return residents


def only(residents: Residents) -> Resident:
    (resident,) = residents.all()
    return resident


def test_a_load_shows_its_phase_and_how_long_it_took() -> None:
    residents = Residents()
    residents.note_load(spec("a"), 10.0)
    residents.note_phase("a", Phase(phase="loading", ratio=0.5))
    state = residents.state(only(residents), 11.0)
    assert (state.status, state.progress) == ("loading", Progress(phase="loading", ratio=0.5))
    ready = Ready(capabilities=["text"], limits=Limits(context=8), max_running=4)
    assert residents.note_ready("a", ready, 12.5, 1000) == 2.5
    state = residents.state(only(residents), 13.0)
    assert (state.status, state.progress, state.load_s) == ("loaded", None, 2.5)
    assert (state.capabilities, state.limits.context) == (["text"], 8)
    assert residents.activity(only(residents)).max_running == 4


def test_what_a_model_took_is_told_with_it() -> None:
    residents = loaded("a")
    residents.costs.note_wake("a", 1.0)
    residents.costs.note_sleep("a", 2.0)
    residents.costs.note_unload("a", 3.0)
    state = residents.state(only(residents), 13.0)
    assert (state.load_s, state.wake_s, state.sleep_s, state.unload_s) == (2.5, 1.0, 2.0, 3.0)


def test_a_second_load_knows_how_long_it_will_take() -> None:
    residents = loaded("a")
    residents.note_unload("a")
    residents.note_gone("a")
    assert residents.all() == []
    residents.note_load(spec("a"), 20.0)
    for now_s, eta_s in [(20.0, 2.5), (21.0, 1.5), (99.0, 0.0)]:
        progress = residents.state(only(residents), now_s).progress
        assert progress is not None
        assert progress.eta_s == eta_s


def test_a_failure_keeps_its_reason_through_the_next_load() -> None:
    residents = loaded("a")
    residents.note_activity("a", Activity(running=3))
    residents.note_failed("a", DIED)
    state = residents.state(only(residents), 13.0)
    assert (state.status, state.last_error) == ("failed", "it was killed")
    assert residents.activity(only(residents)).running == 0
    residents.note_load(spec("a"), 14.0)
    residents.note_ready("a", Ready(), 15.0, 1000)
    state = residents.state(only(residents), 15.0)
    assert (state.status, state.last_error) == ("loaded", "it was killed")


def test_failed_models_do_not_add_up_for_ever() -> None:
    residents = Residents()
    for number in range(MAX_FAILED + 5):
        residents.note_load(spec(f"m{number}"), 0.0)
        residents.note_failed(f"m{number}", DIED)
        residents.forget_failed(())
    assert [r.id for r in residents.all()] == [f"m{n}" for n in range(5, MAX_FAILED + 5)]


def test_a_failed_model_whose_engine_still_ends_is_not_forgotten() -> None:
    residents = Residents()
    for number in range(MAX_FAILED + 2):
        residents.note_load(spec(f"m{number}"), 0.0)
        residents.note_failed(f"m{number}", DIED)
    residents.forget_failed({"m0"})
    assert [r.id for r in residents.all()] == ["m0", *(f"m{n}" for n in range(2, MAX_FAILED + 2))]


def test_a_refused_load_was_never_there() -> None:
    residents = Residents()
    residents.note_load(spec("a"), 0.0)
    residents.note_refused("a")
    assert residents.all() == []


@pytest.mark.parametrize(
    ("ids", "asked", "found"),
    [
        (["huggingface:o/m"], "huggingface:o/m", "huggingface:o/m"),
        (["huggingface:o/m"], "o/m", "huggingface:o/m"),
        (["huggingface:o/m", "other:o/m"], "o/m", None),
        (["huggingface:o/m", "other:o/m"], "other:o/m", "other:o/m"),
        (["huggingface:o/m", "o/m"], "o/m", "o/m"),
        (["o/m"], "huggingface:o/m", None),
        (["qwen2.5:7b"], "7b", None),
    ],
)
def test_a_model_is_found_under_its_bare_id_unless_two_schemes_have_it(
    ids: list[str], asked: str, found: str | None
) -> None:
    resident = loaded(*ids).find(asked)
    assert (resident.id if resident else None) == found


@pytest.mark.parametrize(
    ("ids", "asked", "found"),
    [
        (["o/m"], "hub:o/m", "o/m"),
        (["hub:o/m"], "o/m", "hub:o/m"),
        (["hub:o/m", "other:o/m"], "o/m", "hub:o/m"),
        (["o/m", "other:o/m"], "hub:o/m", "o/m"),
        (["other:o/m"], "o/m", "other:o/m"),
        (["o/m"], "other:o/m", None),
        (["other:o/m"], "hub:o/m", None),
    ],
)
def test_an_id_without_a_scheme_is_of_the_default_source(
    ids: list[str], asked: str, found: str | None
) -> None:
    residents = loaded(*ids)
    residents.note_default_source("hub")
    resident = residents.find(asked)
    assert (resident.id if resident else None) == found


@pytest.mark.parametrize(
    ("asked", "found"),
    [("a", "a"), ("one", "a"), ("two", "b"), ("both", None), ("b", "b"), ("none", None)],
)
def test_a_model_answers_to_the_names_of_its_adapters_too(asked: str, found: str | None) -> None:
    residents = Residents()
    for model_id, names in {"a": ["one", "both", "b"], "b": ["two", "both"]}.items():
        lora = {name: f"org/{name}" for name in names}
        residents.note_load(ModelSpec(model_id=model_id, lora=lora), 0)
    resident = residents.find_served(asked)
    assert (resident.id if resident else None) == found
    own = residents.find(asked)
    assert (own.id if own else None) == (asked if asked in ("a", "b") else None)


def test_the_exact_id_is_another_question() -> None:
    assert loaded("huggingface:o/m").get("o/m") is None


def test_what_was_measured_replaces_what_was_claimed() -> None:
    residents = loaded("a")
    residents.note_place("a", [0], {0: 300})
    assert residents.state(only(residents), 0).vram_used_mb == 300
    residents.note_memory("a", vram_mb=310, host_ram_mb=90)
    state = residents.state(only(residents), 0)
    assert (state.vram_used_mb, state.host_ram_used_mb, state.devices) == (310, 90, [0])
    residents.note_memory("gone", vram_mb=1, host_ram_mb=1)
    assert len(residents.all()) == 1


def test_an_unload_that_is_given_up_serves_again() -> None:
    residents = loaded("a")
    residents.note_unload("a")
    assert only(residents).status is ModelStatus.UNLOADING
    residents.note_kept("a")
    assert only(residents).status is ModelStatus.LOADED


def test_an_illegal_move_changes_nothing() -> None:
    residents = loaded("a")
    with pytest.raises(IllegalMoveError):
        residents.note_load(spec("a"), 0.0)
    with pytest.raises(IllegalMoveError):
        residents.note_gone("a")
    assert only(residents).status is ModelStatus.LOADED
