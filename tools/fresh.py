# SPDX-License-Identifier: GPL-3.0-or-later
"""What a newcomer does: a copy of the tree with nothing installed, the README's first command, its lines to try.

Then a second start, which must install nothing, and the end of each, which must leave nothing.
"""

import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tree

from cortex_cli.trial.plan import Trial

START_S = 900.0
SECOND_START_S = 90.0
END_S = 60.0
READY = "Ctrl-C ends everything."
INSTALLING = re.compile(r"Collecting|Installing|Downloading")


def main() -> None:
    """Go through it; ends with the first fault."""
    with tempfile.TemporaryDirectory(prefix="fresh-") as folder:
        copy = Path(folder, "cortex")
        for path in tree.files():
            target = copy / path.relative_to(tree.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        before = _shared_memory()
        trial = Trial(
            gateway_port=_free_port(), metrics_port=_free_port(), neuron_port=_free_port()
        )
        first = _start(copy, trial, START_S)
        for line in trial.lines_to_try(".venv/bin/cortex"):
            _try(line, copy)
        _end(first, copy, before)
        second = _start(copy, trial, SECOND_START_S)
        if INSTALLING.search(second.said):
            sys.exit(f"the second start installed something:\n{second.said}")
        _end(second, copy, before)
    print("A fresh copy starts, answers, starts again, and leaves nothing.")


class _Up:
    """A running `tools/nox -s up`, and what it has said."""

    def __init__(self, process: subprocess.Popen[str], said: str) -> None:
        self.process = process
        self.said = said


def _start(copy: Path, trial: Trial, within_s: float) -> _Up:
    """Run it until it says that it is ready."""
    ports = [
        f"{option}={address.rpartition(':')[2]}" for option, address in trial.addresses.items()
    ]
    process = subprocess.Popen(
        [copy / "tools/nox", "-s", "up", "--", *ports],
        cwd=copy, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    signal.signal(signal.SIGALRM, lambda *_: process.kill())  # ends the reading below
    signal.alarm(int(within_s))
    began_s, said = time.monotonic(), ""
    for line in process.stdout:
        said += line
        if READY in line:
            signal.alarm(0)
            print(f"started in {time.monotonic() - began_s:.0f} s", flush=True)
            return _Up(process, said)
    sys.exit(f"it did not start within {within_s:.0f} s:\n{said}")


def _try(line: str, copy: Path) -> None:
    print(f"trying {line}", flush=True)
    options = "--fail-with-body --no-progress-meter"
    answer = subprocess.run(
        ["bash", "-c", line.replace("curl ", f"curl {options} ", 1)],
        cwd=copy, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if answer.returncode or not answer.stdout.strip() or '"error"' in answer.stdout:
        sys.exit(f"{line}\nended with {answer.returncode}: {answer.stdout}{answer.stderr}")
    if '"stream": true' in line and answer.stdout.count("data: ") < 3:
        sys.exit(f"{line}\nwas not streamed: {answer.stdout}")


def _end(up: _Up, copy: Path, before: set[Path]) -> None:
    """As Ctrl-C does; then nothing of it may be left."""
    up.process.send_signal(signal.SIGINT)
    rest, _ = up.process.communicate(timeout=END_S)
    if up.process.returncode:
        sys.exit(f"it ended with {up.process.returncode}:\n{rest}")
    if left := _processes(copy):
        sys.exit(f"processes are left: {left}")
    if leaked := _shared_memory() - before:
        sys.exit(f"shared memory is left: {leaked}")
    print("ended, and nothing is left", flush=True)


def _processes(copy: Path) -> list[str]:
    """Running processes that belong to the copy, by their words or, where they renamed themselves, their folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            folder = (process / "cwd").readlink()
        except OSError:
            continue  # it has ended meanwhile, or is another user's
        if str(copy) in words or folder.is_relative_to(copy):
            found.append(words)
    return found


def _shared_memory() -> set[Path]:
    return set(Path("/dev/shm").iterdir())  # noqa: S108 - the system's own folder for it


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
