# SPDX-License-Identifier: GPL-3.0-or-later
"""Where sockets and scratch files of the engines lie: one directory per daemon, one in it per engine."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cortex_core import logs
from cortex_core.errors import OperatorError
from neuron.host import leash, segments

log = logs.get(__name__)

# A unix socket's path has room for 107 bytes, and vLLM adds some 45 of its own below an engine's directory.
MAX_BYTES = 48
PREFIX = "neuron-"
ENGINE = "engine-"
LOCK = "lock"
# A directory as young as this may just be being made by another daemon, and not have its lock yet.
YOUNG_S = 60.0


class RunDir:
    """The daemon's directory, which it holds locked while it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = 0

    @contextmanager
    def open_engine(self) -> Iterator[Path]:
        """A directory for one engine, which goes with it."""
        self._made += 1
        path = self.path / f"{ENGINE}{self._made}"
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def open_run_dir(configured: str | None, *, parent: Path | None = None) -> Iterator[RunDir]:
    """The daemon's directory: `configured`, else a private one; empty at start, and at the end again.

    Args:
        configured: None: a private one, which goes at the end.
        parent: of a private one; None: the system's temporary directory.

    Raises:
        OperatorError: the directory cannot be used, or another daemon uses it.
    """
    if configured is None:
        parent = parent or Path(tempfile.gettempdir())
        _sweep_left_behind(parent)
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    else:
        path = _ensure(Path(configured))
    _check_length(path)
    with _locked(path):
        _sweep(path)
        try:
            yield RunDir(path)
        finally:
            _sweep(path)
            if configured is None:
                shutil.rmtree(path, ignore_errors=True)


def _ensure(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(
            message=f"The run_dir {path} cannot be made: {error.strerror}."
        ) from None
    return path


def _check_length(path: Path) -> None:
    if len(os.fsencode(path)) > MAX_BYTES:
        raise OperatorError(
            message=f"The run_dir {path} is longer than {MAX_BYTES} bytes, too long for the sockets in it. "
            "Set a shorter `run_dir`, such as /run/neuron."
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        descriptor = os.open(path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise OperatorError(
            message=f"The run_dir {path} cannot be written: {error.strerror}."
        ) from None
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OperatorError(
            message=f"The run_dir {path} is used by another neuron. Set another `run_dir`."
        ) from None


def _sweep(path: Path) -> None:
    """Remove the directories of engines, and what their engines have left on the machine."""
    for left in path.glob(f"{ENGINE}*"):
        leash.end_left(left)
        segments.sweep_met(segments.find_meetings(left))
        shutil.rmtree(left, ignore_errors=True)


def _sweep_left_behind(parent: Path) -> None:
    """Remove the private directories of daemons that were killed: those that nobody holds locked."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, OperatorError):
            if _is_old_and_ours(path):
                with _locked(path):
                    _sweep(path)
                    shutil.rmtree(path, ignore_errors=True)
                log.info("directory of a dead daemon removed", path=str(path))


def _is_old_and_ours(path: Path) -> bool:
    status = (path / LOCK).stat()
    return status.st_uid == os.getuid() and time.time() - status.st_mtime > YOUNG_S
