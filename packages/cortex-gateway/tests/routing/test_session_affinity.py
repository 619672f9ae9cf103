# SPDX-License-Identifier: GPL-3.0-or-later
"""Conversations stay where they are: on the same node while it is there, and the others' undisturbed when one goes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_gateway.routing.policy import Replica
from cortex_gateway.routing.session_affinity import SLACK, session_affinity, weigh

NODES = st.lists(st.text("abcdefgh0123-", min_size=1, max_size=8), min_size=2, unique=True)
SESSIONS = st.integers(0, 2**64 - 1)


def make(*nodes: str, busy: int = 0, max_running: int | None = 8) -> list[Replica]:
    return [
        Replica(node=node, model_id="m", busy=busy, max_running=max_running, max_waiting=8)
        for node in nodes
    ]


def choose(session: int, replicas: list[Replica]) -> str:
    return session_affinity(lambda: session)(replicas).node


@given(nodes=NODES, session=SESSIONS, random=st.randoms())
def test_a_conversation_stays_on_its_node_in_whichever_order_they_come(
    nodes: list[str], session: int, random: object
) -> None:
    shuffled = list(nodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose(session, make(*nodes)) == choose(session, make(*shuffled))


@given(nodes=NODES, session=SESSIONS, data=st.data())
def test_when_a_node_leaves_only_its_conversations_move(
    nodes: list[str], session: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(nodes))
    before = choose(session, make(*nodes))
    after = choose(session, make(*(node for node in nodes if node != gone)))
    assert after != gone
    assert before in (after, gone)


def test_what_a_node_weighs_is_the_same_in_every_process() -> None:
    assert [weigh(1, node) % 1000 for node in ("a", "b", "big-box")] == [615, 538, 13]


def test_conversations_spread_evenly() -> None:
    nodes = make(*(f"gpu-{number}" for number in range(5)))
    counts = Counter(choose(session * 7919, nodes) for session in range(5000))
    assert len(counts) == 5
    assert all(850 < count < 1150 for count in counts.values()), counts


def test_without_a_choice_nobody_asks_whose_conversation_it_is() -> None:
    def never() -> int:
        raise AssertionError("asked")

    assert session_affinity(never)(make("a")).node == "a"


@pytest.mark.parametrize(
    ("busy", "max_running", "others", "spills"),
    [
        (7, 8, 0, False),
        (8, 8, 0, True),
        (9, 8, 0, True),
        # more than it is worth, though it could run them
        (SLACK, 256, 0, False),
        (SLACK + 1, 256, 0, True),
        (SLACK * 2 + 2, 256, SLACK + 1, False),
        (SLACK * 2 + 3, 256, SLACK + 1, True),
        (SLACK + 1, None, 0, True),
        (SLACK, None, 0, False),
    ],
)
def test_a_saturated_replica_s_conversations_go_to_the_least_busy(
    busy: int, max_running: int | None, others: int, spills: bool
) -> None:
    own = choose(1, make("a", "b", "c"))
    rest = [node for node in "abc" if node != own]
    replicas = [
        *make(own, busy=busy, max_running=max_running),
        *make(rest[0], busy=others + 1, max_running=max_running),
        *make(rest[1], busy=others, max_running=max_running),
    ]
    assert choose(1, replicas) == (rest[1] if spills else own)
