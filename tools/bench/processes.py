# SPDX-License-Identifier: GPL-3.0-or-later
"""What do a server's processes do: which is EngineCore, and do any of them compute?"""

import asyncio
import os
from pathlib import Path

from bench.figures import FailedError

from neuron.host.processes import descendants

# As vLLM names its processes; the kernel keeps 15 characters.
ENGINE_CORE = "VLLM::EngineCor"
PROC = Path("/proc")
QUIET_S = 1.0
# Of a core. Heartbeats and looks at the devices stay far below; imports use all that they get.
QUIET_RATIO = 0.05
QUIET_PARTS = 2
QUIET_WITHIN_S = 180.0


def find_engine_core(pid: int) -> int:
    """The EngineCore below a server.

    Raises:
        FailedError: there is not exactly one.
    """
    found = [child for child, name in descendants(pid).items() if name == ENGINE_CORE]
    if len(found) != 1:
        raise FailedError(f"the server has {len(found)} processes {ENGINE_CORE}, not one")
    return found[0]


async def until_quiet(pid: int) -> None:
    """Until a server's processes compute nothing: a warm spare has then done its imports.

    Raises:
        FailedError: they go on computing.
    """
    quiet = 0
    before_s = _cpu_s(pid)
    for _ in range(round(QUIET_WITHIN_S / QUIET_S)):
        await asyncio.sleep(QUIET_S)
        now_s = _cpu_s(pid)
        quiet = quiet + 1 if now_s - before_s < QUIET_RATIO * QUIET_S else 0
        if quiet == QUIET_PARTS:
            return
        before_s = now_s
    raise FailedError(f"the server did not come to rest within {QUIET_WITHIN_S:.0f} s")


def _cpu_s(pid: int) -> float:
    """Processor time of a server and all that it started."""
    ticks = sum(_ticks(child) for child in [pid, *descendants(pid)])
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    try:
        # The name, in parentheses, may hold anything.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended meanwhile
        return 0
    return int(fields[11]) + int(fields[12])
