# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a process ended that the engine cannot do without? Told at once, whoever its parent is."""

import contextlib
import os
import select
from pathlib import Path

PROC = Path("/proc")


class Watched:
    """Processes whose end is noticed. Close it, or it holds a descriptor for each."""

    def __init__(self, processes: dict[int, str]) -> None:
        self._names: dict[int, str] = {}
        self._poll = select.poll()
        for pid, name in processes.items():
            with contextlib.suppress(OSError):  # it has ended already; its parent tells that
                descriptor = os.pidfd_open(pid)
                self._names[descriptor] = f"{name} ({pid})"
                self._poll.register(descriptor, select.POLLIN)

    def ended(self) -> str | None:
        """Name and number of one that has ended; None: all live."""
        found = self._poll.poll(0)
        return self._names[found[0][0]] if found else None

    def close(self) -> None:
        """Watch no longer."""
        for descriptor in self._names:
            os.close(descriptor)
        self._names = {}
        self._poll = select.poll()


def descendants(pid: int) -> dict[int, str]:
    """Names, by process id, of all that a process started, and these in turn."""
    parents = dict(filter(None, (_parent(entry) for entry in PROC.iterdir())))
    found: dict[int, str] = {}
    newest = {pid}
    while newest:
        newest = {child for child, parent in parents.items() if parent in newest}
        found |= {child: name for child in newest if (name := _name(child)) is not None}
    return found


def _parent(entry: Path) -> tuple[int, int] | None:
    try:
        # The name, in parentheses, may hold anything.
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # no process, or one that has ended meanwhile
        return None
    return (int(entry.name), int(fields[1])) if entry.name.isdigit() else None


def _name(pid: int) -> str | None:
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return None
