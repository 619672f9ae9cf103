# SPDX-License-Identifier: GPL-3.0-or-later
"""What an echo model's id asks for after its `?`: `echo/small?tokens=300&token_s=0.01`. Pure."""

import re
from typing import Annotated
from urllib.parse import parse_qsl

import msgspec

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]

FAILURES = ("load", "start", "stream", "hang", "poison", "sleep", "wake", "status:NNN")
_STATUS = re.compile(r"status:([45]\d\d)")


class OptionsError(ValueError):
    """The id asks for something that there is not. `suggestion` names what there is."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.suggestion = f"Options are {', '.join(EchoOptions.__struct_fields__)}; `fail` takes {', '.join(FAILURES)}."


class EchoOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an echo engine behaves.

    Attributes:
        tokens: length of each answer; None: as long as what was asked.
        token_s: seconds between two tokens.
        ttft_s: seconds before the first, as a long prompt takes.
        can_sleep: whether it can sleep at all.
        load_s, sleep_s, wake_s: seconds that the engine takes to come up, to fall asleep, to wake.
        reasoning: think before answering.
        tools: call the first tool that a request offers.
        embeddings: do not write, but embed: it serves vectors, scores and ranks of texts.
        max_running: requests that are answered at once; others wait. None: no limit.
        context: tokens of prompt and answer together; longer ones are refused. None: no limit.
        fail: `load`: it cannot come up, and says why. `start`: its process ends on the way, with exit code 0.
            `stream`: its process dies in the middle of an answer. `hang`: there it stops, and answers nothing any
            more. `poison`: what it answers is not sound. `sleep`, `wake`: it cannot. `status:503`: each request
            gets this status.
    """

    tokens: _Count | None = None
    token_s: _Seconds = 0.0
    ttft_s: _Seconds = 0.0
    load_s: _Seconds = 0.0
    can_sleep: bool = True
    sleep_s: _Seconds = 0.0
    wake_s: _Seconds = 0.0
    reasoning: bool = False
    tools: bool = False
    embeddings: bool = False
    max_running: _Count | None = None
    context: _Count | None = None
    fail: str | None = None

    @property
    def fail_status(self) -> int | None:
        """The HTTP status that each request gets; None: it is answered."""
        match = _STATUS.fullmatch(self.fail or "")
        return int(match[1]) if match else None

    def __post_init__(self) -> None:
        if self.fail not in (None, *FAILURES[:-1]) and self.fail_status is None:
            raise ValueError(f"`fail` cannot be '{self.fail}'")


def read_options(model_id: str) -> EchoOptions:
    """The options in a model id.

    Raises:
        OptionsError: one is unknown, twice there, or has a value that does not fit. The caller's fault.
    """
    _, _, query = model_id.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise OptionsError(f"the options '{query}' are not name=value&…") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise OptionsError("an option is there twice")
    try:
        return msgspec.convert(fields, EchoOptions, strict=False)
    except msgspec.ValidationError as error:
        raise OptionsError(f"an option does not fit: {error}") from None
