# SPDX-License-Identifier: GPL-3.0-or-later
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from neuron.host.processes import Watched, descendants

SCRIPT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process and the number of a child that it has; the child ends when its standard input closes."""
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    yield parent, int(parent.stdout.readline())
    parent.communicate(timeout=10)


def test_children_of_children_are_descendants(family: tuple[subprocess.Popen[bytes], int]) -> None:
    parent, grandchild = family
    found = descendants(os.getpid())
    assert {parent.pid, grandchild} <= set(found)
    assert found[grandchild].startswith("python")
    assert descendants(grandchild) == {}


def test_an_end_is_noticed_whoever_is_its_parent(
    family: tuple[subprocess.Popen[bytes], int],
) -> None:
    parent, grandchild = family
    watched = Watched({parent.pid: "parent", grandchild: "grandchild"})
    assert watched.ended() is None
    os.kill(grandchild, 9)
    parent.wait(timeout=10)
    assert watched.ended() in {f"parent ({parent.pid})", f"grandchild ({grandchild})"}
    watched.close()
    assert watched.ended() is None


def test_what_has_gone_before_is_not_watched() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(timeout=10)
    assert Watched({gone.pid: "gone"}).ended() is None
