# SPDX-License-Identifier: GPL-3.0-or-later
"""Which shared memory is a host's? It bears the host's name: whoever made it and was killed, it is found and removed."""

import contextlib
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


def sweep_met(folder: Path) -> None:
    """Remove the shared memory of ranks, which is named after the files by which they met in an engine's directory."""
    for meeting in folder.glob("*/vllm_dist_*"):
        for segment in SHARED_MEMORY.glob(f"{meeting.name}-*"):
            segment.unlink(missing_ok=True)


def _prefix(host: int) -> str:
    # Python leaves room for 14 characters, two random bytes among them; process ids have 22 bits.
    return f"cx{host:x}_"
