# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine is doing, by its own counts."""

from neuron.host.engines.vllm_load import WINDOW_S, Load
from neuron.host.messages import Activity, Counts


def test_an_engine_that_was_never_asked_does_nothing() -> None:
    assert Load().activity(0.0, 0) == Activity(
        kv_usage_ratio=0.0, prefill_tokens_per_s=0.0, decode_tokens_per_s=0.0, counts=Counts()
    )


def test_what_does_not_run_waits() -> None:
    load = Load()
    load.note_scheduler(3, 0.5)
    now = load.activity(0.0, 5)
    assert (now.running, now.waiting, now.kv_usage_ratio) == (3, 2, 0.5)


def test_an_aborted_request_does_not_run_on_in_the_count() -> None:
    load = Load()
    load.note_scheduler(1, 0.5)
    now = load.activity(0.0, 0)
    assert (now.running, now.waiting, now.kv_usage_ratio) == (0, 0, 0.0)


def test_rates_are_of_the_last_moments() -> None:
    load = Load()
    load.note_tokens(0.0, 100, 0)
    load.note_tokens(1.0, 0, 10)
    now = load.activity(1.0, 1)
    assert (now.prefill_tokens_per_s, now.decode_tokens_per_s) == (100 / WINDOW_S, 10 / WINDOW_S)
    later = load.activity(WINDOW_S, 1)
    assert (later.prefill_tokens_per_s, later.decode_tokens_per_s) == (0.0, 10 / WINDOW_S)


def test_totals_only_grow() -> None:
    load = Load()
    load.note_tokens(0.0, prompt=10, generated=1)
    load.note_cache(queries=10, hits=4)
    load.note_tokens(1.0, prompt=0, generated=2, preemptions=1)
    load.note_cache(queries=0, hits=0)
    for _ in range(2):
        load.note_finished(queue_s=0.25, prefill_s=0.5, decode_s=1.0)
        load.note_drafts(drafted=4, accepted=1)
    expected = Counts(
        prompt_tokens=10, generated_tokens=3, cache_queries=10, cache_hits=4, preemptions=1,
        finished=2, queue_s=0.5, prefill_s=1.0, decode_s=2.0, draft_tokens=8, accepted_tokens=2,
    )  # fmt: skip
    assert load.activity(100.0, 0).counts == expected
