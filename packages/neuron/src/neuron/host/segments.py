# SPDX-License-Identifier: GPL-3.0-or-later
"""Which shared memory is a host's? It bears the host's name: whoever made it and was killed, it is found and removed."""

import contextlib
from collections.abc import Iterable
from multiprocessing import shared_memory
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - what is made there is made by Python


def name_after(host: int) -> None:
    """Have all that Python makes from now on, here and in what is forked, named after a host, by its process id."""
    shared_memory._SHM_NAME_PREFIX = f"/{_prefix(host)}"  # type: ignore[attr-defined]  # noqa: SLF001


def named_after(host: int) -> set[Path]:
    """What there is of a host's."""
    return set(SHARED_MEMORY.glob(f"{_prefix(host)}*"))


def sweep(host: int) -> None:
    """Remove what there is of a host's, whose processes have ended but for it."""
    for segment in named_after(host):
        with contextlib.suppress(OSError):  # it went meanwhile
            segment.unlink()


def find_meetings(folder: Path) -> list[str]:
    """The names of files below an engine's directory by which its ranks have met."""
    return [file.name for file in folder.rglob("vllm_dist_*")]


def sweep_met(meetings: Iterable[str]) -> None:
    """Remove the shared memory of ranks, which is named after how they met."""
    for meeting in meetings:
        for segment in SHARED_MEMORY.glob(f"{meeting}-*"):
            segment.unlink(missing_ok=True)


def _prefix(host: int) -> str:
    # Python leaves room for 14 characters, two random bytes among them; process ids have 22 bits.
    return f"cx{host:x}_"
