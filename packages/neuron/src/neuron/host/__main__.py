# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m neuron.host`: one engine, told what to run by one line on standard input."""

import os
import sys
from typing import NoReturn

from cortex_core import logs
from cortex_core.http import server
from neuron.host import leash
from neuron.host.messages import read_start
from neuron.host.session import Session

log = logs.get(__name__)


def main() -> None:
    """Run until the engine ends; then nothing that it started is left."""
    pipe = take_standard_output()
    logs.setup(level="warning")
    line = sys.stdin.buffer.readline()
    if not line:  # the daemon has ended before it said anything
        return
    session = Session(read_start(line), pipe, sys.stdin.fileno(), end)
    try:
        server.run(session.run)
    except Exception:  # the outermost layer: what it started must end all the same
        log.exception("engine host failed")
        end(1)


def end(exit_code: int) -> NoReturn:
    """End this process and what it started, now."""
    leash.end_others()
    sys.stderr.flush()
    # Not sys.exit: the interpreter would wait for threads that libraries left behind.
    os._exit(exit_code)


def take_standard_output() -> int:
    """Where messages go. What libraries print goes to standard error from now on, or it would be read as messages."""
    pipe = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return pipe


if __name__ == "__main__":
    main()
