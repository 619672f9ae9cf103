# SPDX-License-Identifier: GPL-3.0-or-later
"""What daemon and engine host tell each other: one JSON object per line. Pure."""

from typing import Any

import msgspec

from cortex_core.control import ModelSpec
from cortex_core.node import Limits


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """From the daemon, the first and only line: what to run.

    Attributes:
        model_path: directory with the model's files; None: the engine needs none.
        socket: path of the unix socket to serve on.
        run_dir: directory of this engine alone, for sockets and scratch files; swept by the daemon.
        settings: the harness's own settings from neuron.toml, as it wants them.
    """

    spec: ModelSpec
    model_path: str | None = None
    socket: str
    run_dir: str
    settings: dict[str, Any] = {}


class Phase(msgspec.Struct, frozen=True, kw_only=True, tag="phase"):
    """How far the start is: importing, configuring, loading, warming_up. `ratio` of the whole; None: not known."""

    phase: str
    ratio: float | None = None


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The engine serves on its socket.

    Attributes:
        capabilities: such as text, vision, tools, reasoning, embeddings.
        max_running: sequences the engine runs at once; None: it has no limit.
        ranks: one dict of figures per rank, logged as `engine constructed`.
        versions: of the libraries in the engine's environment.
    """

    capabilities: list[str] = []
    limits: Limits = Limits()
    can_sleep: bool = False
    max_running: int | None = None
    ranks: list[dict[str, Any]] = []
    versions: dict[str, str] = {}


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The engine did not come up.

    Attributes:
        kind: as in LoadRefusedError, or `engine_start_failed`.
        message: the true cause, in words for whoever asked.
        suggestion: what to do about it; may be empty.
    """

    kind: str
    message: str
    suggestion: str = ""


class Activity(msgspec.Struct, frozen=True, kw_only=True, tag="activity"):
    """What the engine is doing, by its own count; sent when it changes, and at least each second."""

    running: int = 0
    waiting: int = 0
    kv_usage_ratio: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None


Message = Phase | Ready | Failed | Activity

_ENCODE = msgspec.json.Encoder()
_READ: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_READ_START = msgspec.json.Decoder(Start)


def write_line(message: Start | Message) -> bytes:
    """One message as one line. JSON escapes line ends, so a line is never broken by its content."""
    return _ENCODE.encode(message) + b"\n"


def read_message(line: bytes) -> Message:
    """A line from a host. Raises msgspec.DecodeError or ValidationError where it is none."""
    return _READ.decode(line)


def read_start(line: bytes) -> Start:
    """The line to a host. Raises as `read_message`."""
    return _READ_START.decode(line)
