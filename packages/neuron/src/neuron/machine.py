# SPDX-License-Identifier: GPL-3.0-or-later
"""What does the kernel say of this machine: its name, its memory, its processes?"""

import os
import platform
import re
from pathlib import Path

from neuron.discovery import Machine

PROC = Path("/proc")
_MODULE_VERSION = re.compile(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", re.MULTILINE)
SHARED_MEMORY = "/dev/shm/"  # noqa: S108 - only looked at
KIB_PER_MIB = 1024


def read_machine() -> Machine:
    """The machine, as it stays while the daemon runs."""
    return Machine(
        hostname=platform.node() or "unknown",
        os=_os_name(),
        kernel=platform.release(),
        cpu_name=_cpu_name(),
        host_ram_mb=_memory_mb("MemTotal") or 0,
    )


def nvidia_kernel_module() -> str | None:
    """The version of NVIDIA's kernel module that is loaded; None: none is, or it does not tell."""
    try:
        return read_kernel_module((PROC / "driver/nvidia/version").read_text())
    except OSError:
        return None


def read_kernel_module(text: str) -> str | None:
    """The version in the text that the module tells; None: it has none."""
    found = _MODULE_VERSION.search(text)
    return found[1] if found else None


def ram_free_mb() -> int | None:
    """MiB of host memory that a new process could have; None: the kernel does not tell."""
    return _memory_mb("MemAvailable")


def groups_ram_mb(groups: set[int]) -> dict[int, int]:
    """MiB of host memory of each process group, memory that several processes share counted once."""
    used_kib: dict[int, int] = {}
    for pid, group in group_members(groups):
        used_kib[group] = used_kib.get(group, 0) + _proportional_kib(pid)
    return {group: kib // KIB_PER_MIB for group, kib in used_kib.items()}


def group_members(groups: set[int]) -> list[tuple[int, int]]:
    """Process id and group of every process that is in one of the groups."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    return [(pid, group) for pid in pids if (group := group_of(pid)) in groups]


def stopped_in(group: int) -> list[int]:
    """Processes of a group that a signal has stopped, and that run on only when another one says so."""
    return [pid for pid, _ in group_members({group}) if _state(pid) == "T"]


def shared_memory_of(group: int) -> set[Path]:
    """Segments of shared memory, and semaphores, that processes of a group have mapped."""
    mapped = {inode for pid, _ in group_members({group}) for inode in mapped_inodes(pid)}
    if not mapped:
        return set()
    with os.scandir(SHARED_MEMORY) as entries:
        return {Path(entry.path) for entry in entries if entry.inode() in mapped}


def _state(pid: int) -> str | None:
    try:
        # The name, in parentheses, may hold anything.
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def mapped_inodes(pid: int) -> set[int]:
    """Of the segments that a process has. By inode: a semaphore is made under another name than it has in the end."""
    try:
        maps = (PROC / str(pid) / "maps").read_text()
    except OSError:
        return set()
    return {int(line.split()[4]) for line in maps.splitlines() if SHARED_MEMORY in line}


def group_of(pid: int) -> int:
    """The process group of a process; 0: it is gone."""
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def _proportional_kib(pid: int) -> int:
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:  # it has gone, or is not ours to look into
        return 0
    return _field(text, "Pss") or 0


def _memory_mb(name: str) -> int | None:
    try:
        kib = _field((PROC / "meminfo").read_text(), name)
    except OSError:
        return None
    return None if kib is None else kib // KIB_PER_MIB


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _cpu_name() -> str:
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine() or "CPU"
