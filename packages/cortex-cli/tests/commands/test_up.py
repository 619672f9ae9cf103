# SPDX-License-Identifier: GPL-3.0-or-later
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

READY = "Ctrl-C ends everything."


def free_ports() -> list[str]:
    """Words that move the daemons to ports of their own."""
    words = []
    for option in ("--port-gateway", "--port-metrics", "--port-neuron"):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            words.append(f"{option}={sock.getsockname()[1]}")
    return words


@contextmanager
def up(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`cortex up` on echo, with its temporary files in a folder of the test's."""
    command = [sys.executable, "-m", "cortex_cli", "up", "--harness", "echo", *words]
    environ = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if word in line:
            return said
    raise AssertionError(said + (process.stderr.read() if process.stderr else ""))


def children_of(pid: int) -> set[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in listed}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Short, since paths of sockets are."""
    path = Path(f"/tmp/cx-{os.getpid()}")  # noqa: S108
    path.mkdir()
    yield path
    path.rmdir()  # fails where something was left


def test_once_it_ends_by_itself_after_the_first_token(folder: Path) -> None:
    with up(folder, "--once", *free_ports()) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "echo, which is no model" in said
    assert said.index("asking for a first token") < said.index("/v1/chat/completions")
    assert said.endswith("Everything has ended.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything_and_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    with up(folder, *free_ports()) as process:
        read_until(process, READY)
        children = children_of(process.pid)
        assert len(children) == 2
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_killed_it_takes_its_daemons_along() -> None:
    # Its files it cannot remove.
    with tempfile.TemporaryDirectory(prefix="cx") as left, up(Path(left), *free_ports()) as process:
        read_until(process, READY)
        ended = [os.pidfd_open(child) for child in children_of(process.pid)]
        process.kill()
        for descriptor in ended:
            assert select.select([descriptor], [], [], 30)[0]
            os.close(descriptor)
    assert len(ended) == 2


def test_a_daemon_that_dies_ends_it_with_its_last_words(folder: Path) -> None:
    with up(folder, *free_ports()) as process:
        read_until(process, READY)
        os.kill(max(children_of(process.pid)), signal.SIGKILL)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ended with exit code -9. Its last lines:" in errors
    assert "Ending gateway and neuron" in said


def test_a_port_in_use_is_told_before_anything_starts(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        taken = sock.getsockname()[1]
        with up(folder, *free_ports(), f"--port-neuron={taken}") as process:
            said, errors = process.communicate(timeout=30)
    assert (process.returncode, said) == (2, "")
    assert f"127.0.0.1:{taken} is in use" in errors
    assert "--port-neuron takes another port" in errors


def test_verbose_shows_what_the_daemons_log(folder: Path) -> None:
    with up(folder, "--once", "--verbose", *free_ports()) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "gateway is up" in errors
