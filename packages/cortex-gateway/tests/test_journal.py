# SPDX-License-Identifier: GPL-3.0-or-later
from cortex_gateway.journal import KEPT_REQUESTS, KEPT_STEPS, Candidate, Journal, Record


def make_record(request_id: str = "r", began_s: float = 100.0) -> Record:
    return Record(request_id, "openai_chat", "m", stream=True, at=1.0, began_s=began_s)


def add(record: Record, now_s: float, decision: str, node: str | None = None) -> None:
    record.add(now_s, decision, "m", "why", node)


def test_a_story_has_its_steps_with_their_times() -> None:
    record = make_record()
    add(record, 100.5, "load", "a")
    record.note_served("m", "a")
    add(record, 103.0, "serve", "a")
    record.load_wait_s = 2.5
    story = record.tell(104.0)
    assert [(step.after_s, step.decision) for step in story.steps] == [
        (0.5, "load"),
        (3.0, "serve"),
    ]
    assert (story.outcome, story.duration_s, story.node, story.load_wait_s) == (
        "running",
        4.0,
        "a",
        2.5,
    )
    record.end("answered", 200, None, 105.0)
    story = record.tell(999.0)
    assert (story.outcome, story.status, story.duration_s) == ("answered", 200, 5.0)


def test_the_same_again_is_counted_and_not_repeated() -> None:
    record = make_record()
    for now_s in (101.0, 102.0, 103.0):
        add(record, now_s, "queue")
    (step,) = record.tell(104.0).steps
    assert (step.times, step.after_s) == (3, 1.0)


def test_waiting_for_room_is_summed_over_all_its_times() -> None:
    record = make_record()
    add(record, 101.0, "queue")
    add(record, 103.0, "wait")  # 2 s
    add(record, 110.0, "queue")
    assert record.tell(113.0).queue_wait_s == 5.0
    record.end("left", None, None, 111.0)
    assert record.tell(200.0).queue_wait_s == 3.0


def test_steps_are_bounded_and_the_first_and_the_last_stay() -> None:
    record = make_record()
    for number in range(10 * KEPT_STEPS):
        add(record, 100.0 + number, "wait", str(number))
    steps = record.tell(0.0).steps
    assert len(steps) == KEPT_STEPS
    assert (steps[0].node, steps[-1].node) == ("0", str(10 * KEPT_STEPS - 1))


def test_candidates_are_kept_of_the_first_step_and_the_last() -> None:
    record = make_record()
    for node in "abcd":
        candidate = Candidate(node=node, says="has room")
        record.add(101.0, "load", "m", "why", node, [candidate].copy)
    steps = record.tell(104.0).steps
    assert [[each.node for each in step.candidates] for step in steps] == [["a"], [], [], ["d"]]


def test_the_last_requests_are_kept_and_the_newest_of_an_id() -> None:
    journal = Journal()
    for number in range(KEPT_REQUESTS + 5):
        record = make_record(str(number))
        journal.begin(record)
        journal.end(record)
    assert journal.find("4") is None
    assert journal.find("5") is not None
    assert journal.running == []
    first, second = make_record("same"), make_record("same")
    journal.begin(first)
    journal.begin(second)
    journal.end(second)
    assert journal.find("same") is second
    assert journal.running == [first]
