# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m neuron.host`: one engine, told what to run by one line on standard input.

A line before it may ask for imports ahead: the process is then a warm spare, until the other line comes.
"""

import contextlib
import os
import sys
from typing import NoReturn

from cortex_core import logs
from cortex_core.http import server
from neuron.host import leash, segments
from neuron.host.engines import import_engine
from neuron.host.messages import Start, Warm, read_order
from neuron.host.session import Session, send

log = logs.get(__name__)


def main() -> None:
    """Run until the engine ends; then nothing that it started is left."""
    pipe = take_standard_output()
    segments.name_after(os.getpid())
    logs.setup(level="warning")
    start = wait_for_start(pipe)
    if start is None:
        return
    set_environment(start)
    session = Session(start, pipe, sys.stdin.fileno(), end)
    try:
        server.run(session.run)
    except Exception:  # the outermost layer: what it started must end all the same
        log.exception("engine host failed")
        end(1)


def wait_for_start(pipe: int) -> Start | None:
    """The order to run an engine; imports asked for before it are done. None: the daemon has ended."""
    while line := sys.stdin.buffer.readline():
        order = read_order(line)
        if isinstance(order, Start):
            return order
        import_engine(order.harness).preload(order.settings)
        send(pipe, Warm())
    return None


def set_environment(start: Start) -> None:
    """Set what only this engine has; a spare was started before it was known."""
    for name, value in start.environ.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def end(exit_code: int) -> NoReturn:
    """End this process and what it started, now."""
    leash.end_others()
    # A daemon that died left a pipe that nobody reads: what is left to say must not keep the process.
    with contextlib.suppress(OSError):
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
