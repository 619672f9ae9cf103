# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a start failed, as the engine's processes saw it: errors that they log, gathered in a file.

vLLM's parent process only says that EngineCore failed; the true exception is in a log line of a child. A
logging handler in each of them appends what it sees to one file, which is read when a start fails.
"""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import msgspec

from neuron.host.engines.vllm_failures import Cause

_ENCODE = msgspec.json.Encoder()
_READ = msgspec.json.Decoder(Cause)
# Short enough to be appended in one piece by several processes.
_MAX_CHARS = 2000


class CauseHandler(logging.Handler):
    """Appends exceptions that are logged as errors to a file. vLLM makes it in each of its processes."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Append the record, if it has an exception."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        line = _ENCODE.encode(describe(error)) + b"\n"
        with contextlib.suppress(OSError):  # the folder is gone: nobody asks any more
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, line)
            finally:
                os.close(file)


def describe(error: BaseException) -> Cause:
    """An exception as a cause."""
    return Cause(kind=type(error).__name__, text=str(error)[:_MAX_CHARS])


def read_causes(path: Path) -> list[Cause]:
    """What was gathered, oldest first."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    causes = []
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError):  # cut by a process that was killed
            causes.append(_READ.decode(line))
    return causes


def logging_config(path: Path) -> dict[str, Any]:
    """Logging for vLLM: causes into the file, everything to the process's own handlers as well."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"causes": {"()": f"{__name__}.CauseHandler", "path": str(path)}},
        "loggers": {"vllm": {"handlers": ["causes"], "level": "WARNING", "propagate": True}},
    }
