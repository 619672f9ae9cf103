# SPDX-License-Identifier: GPL-3.0-or-later
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex_core.errors import OperatorError
from neuron import run_dir
from neuron.host import leash
from neuron.host.segments import SHARED_MEMORY
from neuron.run_dir import MAX_BYTES, open_run_dir


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="nt") as folder:
        yield Path(folder)


def age(path: Path) -> None:
    os.utime(path, (1, 1))


def test_each_engine_has_a_directory_that_goes_with_it(short: Path) -> None:
    with open_run_dir(str(short / "run")) as made:
        with made.open_engine() as one, made.open_engine() as two:
            (one / "file").write_text("x")
            assert one != two
            assert stat.S_IMODE(one.stat().st_mode) == 0o700
        assert not one.exists()
        assert not two.exists()


def test_what_a_dead_daemon_left_is_swept_and_nothing_else(short: Path) -> None:
    (short / "engine-7").mkdir()
    (short / "engine-7" / "http").write_text("")
    (short / "notes.txt").write_text("mine")
    with open_run_dir(str(short)):
        assert not (short / "engine-7").exists()
    assert (short / "notes.txt").read_text() == "mine"


SCRIPT = """
import os, sys
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from neuron.host import leash, segments
segments.name_after(os.getpid())
segment = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(segment._name, "shared_memory")
leash.note_host(Path(sys.argv[1]))
print(segment.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def left(short: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A host whose daemon is gone, in the directory `engine-1`; and the segment that it has."""
    folder = short / "engine-1"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        segment = SHARED_MEMORY / process.stdout.readline().strip()
        try:
            yield process, segment
        finally:
            process.kill()
            segment.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_was_killed_or_stopped_leaves_nothing(
    short: Path, left: tuple[subprocess.Popen[str], Path], number: int
) -> None:
    process, segment = left
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.wait()
    (short / "engine-1/vllm").mkdir()
    (short / "engine-1/vllm/vllm_dist_nt1").touch()
    meeting = SHARED_MEMORY / "vllm_dist_nt1-3-cpushm"
    meeting.touch()
    assert segment.exists()
    with open_run_dir(str(short)):
        assert process.wait(5) == -signal.SIGKILL
        assert not segment.exists()
        assert not meeting.exists()


@pytest.mark.slow
def test_a_process_that_only_has_its_number_is_none(
    short: Path, left: tuple[subprocess.Popen[str], Path]
) -> None:
    process, segment = left
    (short / "engine-1" / leash.NOTE).write_text(f"{process.pid} 1")
    with open_run_dir(str(short)):
        assert process.poll() is None
        assert segment.exists()


def test_two_daemons_do_not_share_one(short: Path) -> None:
    with (
        open_run_dir(str(short)),
        pytest.raises(OperatorError, match="used by another neuron"),
        open_run_dir(str(short)),
    ):
        pass
    with open_run_dir(str(short)):
        pass


def test_without_a_setting_it_is_private_and_goes_at_the_end() -> None:
    with open_run_dir(None) as made:
        path = made.path
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert len(os.fsencode(path)) <= MAX_BYTES
    assert not path.exists()


def test_private_ones_of_killed_daemons_are_swept(
    short: Path,
) -> None:
    with open_run_dir(None, parent=short) as living:
        age(living.path / run_dir.LOCK)
        dead, young = short / "neuron-dead", short / "neuron-young"
        for path in (dead, young):
            path.mkdir()
            (path / run_dir.LOCK).touch()
        age(dead / run_dir.LOCK)
        (short / "neuron-notours").mkdir()
        with open_run_dir(None, parent=short):
            pass
        assert sorted(path.name for path in short.iterdir()) == sorted(
            [living.path.name, "neuron-young", "neuron-notours"]
        )


@pytest.mark.parametrize(
    ("path", "message"),
    [("/proc/none", "cannot be made"), ("/proc/self/task", "cannot be written")],
)
def test_one_that_cannot_be_used_is_the_operator_s_mistake(path: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message), open_run_dir(path):
        pass


def test_a_path_too_long_for_sockets_is_refused(short: Path) -> None:
    with (
        pytest.raises(OperatorError, match="longer than 48 bytes"),
        open_run_dir(str(short / ("x" * MAX_BYTES))),
    ):
        pass
