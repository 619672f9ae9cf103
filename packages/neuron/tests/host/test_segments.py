# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared memory that bears a host's name, in a process of its own: from then on all that it makes does."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from neuron.host import segments

SCRIPT = """
import os, sys
from multiprocessing import resource_tracker, shared_memory
from neuron.host import segments
segments.name_after(os.getpid())
segment = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(segment._name, "shared_memory")  # who is killed is not swept after
print(os.getpid(), segment.name, flush=True)
"""


@pytest.fixture
def dead() -> Iterator[tuple[int, str]]:
    """A process that has ended, and the name of what it left."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    pid, name = ran.stdout.split()
    yield int(pid), name
    (segments.SHARED_MEMORY / name).unlink(missing_ok=True)


def test_what_a_dead_process_left_is_found_and_removed(dead: tuple[int, str]) -> None:
    pid, name = dead
    left = segments.SHARED_MEMORY / name
    assert segments.named_after(pid) == {left}
    segments.sweep(pid)
    assert not left.exists()


def test_what_another_one_has_stays(dead: tuple[int, str]) -> None:
    pid, name = dead
    # The other's number begins with, or is the beginning of, this one's.
    segments.sweep(pid * 16)
    segments.sweep(pid // 16)
    assert (segments.SHARED_MEMORY / name).exists()


def test_the_highest_process_id_leaves_room_for_a_name() -> None:
    highest = 2**22
    script = f"from neuron.host import segments; segments.name_after({highest}); from multiprocessing import shared_memory as s; s._make_filename()"
    subprocess.run([sys.executable, "-c", script], check=True)
