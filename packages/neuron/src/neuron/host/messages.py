# SPDX-License-Identifier: GPL-3.0-or-later
"""What daemon and engine host tell each other: one JSON object per line. Pure."""

from typing import Any

import msgspec

from cortex_core.control import ModelSpec
from cortex_core.node import Limits


class Preload(msgspec.Struct, frozen=True, kw_only=True, tag="preload"):
    """From the daemon, to a spare: import ahead what engines of a harness need. The start comes later, on a line of its own.

    Attributes:
        harness: whose engine.
        settings: the harness's own settings from neuron.toml, as in Start.
    """

    harness: str
    settings: dict[str, Any] = {}


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """From the daemon, the last line: what to run.

    Attributes:
        model_path: directory with the model's files; None: the engine needs none.
        socket: path of the unix socket to serve on.
        run_dir: directory of this engine alone, for sockets and scratch files; swept by the daemon.
        settings: the harness's own settings from neuron.toml, as it wants them.
        environ: variables for this engine, set before it is built; None removes one.
        beat_interval_s: seconds between two questions to the engine's own loop, and to each rank, whether they live.
        probe_interval_s: seconds between two looks at whether the engine's numbers are sound.
        traces: tell of each step as well; not done where nobody reads it, since every step pays for it.
        counts: only count tokens, as the model's engine would: no weights are read, and no device is touched.
    """

    spec: ModelSpec
    model_path: str | None = None
    socket: str
    run_dir: str
    settings: dict[str, Any] = {}
    environ: dict[str, str | None] = {}
    beat_interval_s: float = 0.5
    probe_interval_s: float = 10.0
    traces: bool = False
    counts: bool = False


class Phase(msgspec.Struct, frozen=True, kw_only=True, tag="phase"):
    """How far the start is: importing, configuring, loading, warming_up; `downloading` before any of these.

    Attributes:
        ratio: of the phase, or the whole; None: not known.
        eta_s: seconds until the phase ends; None: not known.
    """

    phase: str
    ratio: float | None = None
    eta_s: float | None = None


class Warm(msgspec.Struct, frozen=True, kw_only=True, tag="warm"):
    """A spare has imported what it was told to."""


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
    """The engine did not come up, or cannot go on.

    Attributes:
        kind: as in LoadRefusedError, or `engine_start_failed`, `engine_died`, `engine_poisoned`.
        message: the true cause, in words for whoever asked.
        suggestion: what to do about it; may be empty.
        logits: of a poisoned engine: the health of its logits, one dict of figures per step that was looked at; `phase` there
            says whether the step read prompts, wrote, or both: prefill, decode, mixed.
    """

    kind: str
    message: str
    suggestion: str = ""
    logits: list[dict[str, Any]] = []


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine has done since it came up.

    Attributes:
        prompt_tokens, generated_tokens: read, and written.
        cache_queries, cache_hits: prompt tokens that were looked for in the prefix cache, and found there.
        preemptions: requests that were set back for want of KV cache.
        finished: requests that came to their end; the three below are sums over them.
        queue_s, prefill_s, decode_s: seconds that they waited inside the engine, were read, and were written.
        draft_tokens, accepted_tokens: that were guessed ahead, where the engine does, and that were right.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    preemptions: int = 0
    finished: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    draft_tokens: int = 0
    accepted_tokens: int = 0


class Activity(msgspec.Struct, frozen=True, kw_only=True, tag="activity"):
    """What the engine is doing, by its own count; sent when it changes, and as a heartbeat.

    Attributes:
        silent_s: seconds since the engine's own loop last answered its host.
        counts: None: the engine does not count.
    """

    running: int = 0
    waiting: int = 0
    kv_usage_ratio: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    silent_s: float = 0.0
    counts: Counts | None = None


class Steps(msgspec.Struct, frozen=True, kw_only=True, tag="steps"):
    """What the engine's last steps left of its devices, where it is traced.

    Attributes:
        free_mb: by rank, the MiB that were free on its device at the end of each step.
    """

    free_mb: list[list[int]]


class SleepOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Body of a POST to SLEEP_PATH on the engine's socket. `level` as in Engine.sleep."""

    level: int


# On the engine's socket, for the daemon alone.
SLEEP_PATH = "/engine/sleep"
WAKE_PATH = "/engine/wake"

Order = Preload | Start
Message = Phase | Warm | Ready | Failed | Activity | Steps

_ENCODE = msgspec.json.Encoder()
_READ: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_READ_ORDER: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


def write_line(message: Order | Message) -> bytes:
    """One message as one line. JSON escapes line ends, so a line is never broken by its content."""
    return _ENCODE.encode(message) + b"\n"


def read_message(line: bytes) -> Message:
    """A line from a host. Raises msgspec.DecodeError or ValidationError where it is none."""
    return _READ.decode(line)


def read_order(line: bytes) -> Order:
    """A line to a host. Raises as `read_message`."""
    return _READ_ORDER.decode(line)
