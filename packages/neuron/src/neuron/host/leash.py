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


def tie(stdin: int, stop: asyncio.Event, *, within_s: float = END_WITHIN_S) -> None:
    """Set `stop` when the daemon closes its end, or has died; end the process if that takes longer than `within_s`.

    A thread, and not the event loop: a loop that hangs in a library must not keep a host alive without a daemon.
    """
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
