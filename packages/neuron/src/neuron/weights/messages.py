# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon and the child that downloads tell each other: one JSON object per line. Pure."""

import msgspec


class Fetch(msgspec.Struct, frozen=True, kw_only=True, tag="fetch"):
    """To the child, its first line: what to fetch.

    Attributes:
        repo: `org/name`.
        endpoint: of the source, without a slash at its end.
        token: for that endpoint alone; None: none.
        auth_env: the variable that the token is to be in, for messages; None: the source has none.
        cache_dir: of the source.
        quant: of the spec.
        revision: branch, tag or commit.
        with_gguf: whether GGUF files will do; else they are refused before a byte of them has come.
        wait_s: seconds before the first retry; each next waits twice as long.
    """

    repo: str
    endpoint: str
    token: str | None = None
    auth_env: str | None = None
    cache_dir: str
    quant: str | None = None
    revision: str = "main"
    with_gguf: bool = True
    wait_s: float


class Go(msgspec.Struct, frozen=True, kw_only=True, tag="go"):
    """To the child, its second line: there is room."""


class Planned(msgspec.Struct, frozen=True, kw_only=True, tag="planned"):
    """What it will fetch. It waits for Go.

    Attributes:
        revision: the commit.
        total_bytes: of all files of the model.
        missing_bytes: of those, what is not here yet, as far as the source tells sizes.
        missing_files: how many of them are not here yet.
    """

    revision: str
    total_bytes: int
    missing_bytes: int
    missing_files: int


class Progressed(msgspec.Struct, frozen=True, kw_only=True, tag="progressed"):
    """So many of the total bytes are here."""

    done_bytes: int


class Fetched(msgspec.Struct, frozen=True, kw_only=True, tag="fetched"):
    """Every file is here and whole.

    Attributes:
        base: the repository whose tokenizer goes with a GGUF file; None: it needs none, or none is known.
    """

    revision: str
    base: str | None = None


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """It cannot be had; fields as in WeightsError."""

    kind: str
    reason: str
    suggestion: str
    passing: bool = False


Order = Fetch | Go
Message = Planned | Progressed | Fetched | Refused

_ENCODE = msgspec.json.Encoder()
_READ: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_READ_ORDER: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


def write_line(message: Order | Message) -> bytes:
    """One message as one line."""
    return _ENCODE.encode(message) + b"\n"


def read_message(line: bytes) -> Message:
    """A line from the child. Raises msgspec.DecodeError or ValidationError where it is none."""
    return _READ.decode(line)


def read_order(line: bytes) -> Order:
    """A line to the child. Raises as `read_message`."""
    return _READ_ORDER.decode(line)
