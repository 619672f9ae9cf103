# SPDX-License-Identifier: GPL-3.0-or-later
"""What ties a host to its daemon: when standard input closes, the host ends, and all that it started."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from pathlib import Path

from neuron.host import segments

# More than an engine takes for its own end; then it is ended, loop or no loop.
END_WITHIN_S = 20.0
# In an engine's directory: the host's process id, and when the kernel began it.
NOTE = "host"


def tie(stdin: int, stop: asyncio.Event, *, within_s: float = END_WITHIN_S) -> None:
    """Set `stop` when the daemon closes its end, or has died; end the process if that takes longer than `within_s`.

    That alone is a host's order to end: a signal to the whole service is the daemon's, who has running answers end first.
    A thread, and not the event loop: a loop that hangs in a library must not keep a host alive without a daemon.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not SIG_IGN, which programs would inherit that libraries run.
        signal.signal(number, lambda *_: None)
    loop = asyncio.get_running_loop()

    def wait() -> None:
        with contextlib.suppress(
            OSError
        ):  # a socket's other end may be reset, which is the same to us
            while os.read(stdin, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process is about to
            loop.call_soon_threadsafe(stop.set)
        time.sleep(within_s)
        end_others()
        os._exit(1)

    threading.Thread(target=wait, name="leash", daemon=True).start()


def end_others() -> None:
    """Kill the processes that this one started, which are in its group, and remove the shared memory that they leave."""
    own = os.getpid()
    if os.getpgrp() != own:  # started by hand: the group is somebody's shell
        return
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    for pid in pids:
        try:
            if pid != own and os.getpgid(pid) == own:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended meanwhile
            continue
    segments.sweep(own)


def note_host(folder: Path) -> None:
    """Write down that this process runs the engine of a directory."""
    own = os.getpid()
    with contextlib.suppress(OSError):  # an engine can run without
        (folder / NOTE).write_text(f"{own} {_began(own)}")


def end_left(folder: Path) -> None:
    """End the host of a directory whose daemon was killed, should it still live, and remove its shared memory.

    One that is stopped does not see that its daemon is gone, and one that was killed with it could remove nothing.
    """
    try:
        pid, began = (int(word) for word in (folder / NOTE).read_text().split())
    except (OSError, ValueError):  # it had not come so far
        return
    now = _began(pid)
    if now is not None and now != began:
        return  # a later process has its number
    if now is not None:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    segments.sweep(pid)


def _began(pid: int) -> int | None:
    """When a process was begun, in the kernel's ticks; None: there is none."""
    try:
        # The name, in parentheses, may hold anything; the fields after it begin with the third.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[22 - 3])
    except OSError:
        return None
