# SPDX-License-Identifier: GPL-3.0-or-later
"""What the gateway asks of a dialect, an API as clients speak it.

To add one: a module here with a class that fulfils `Dialect`, one line in `build_dialects`. The neurons speak OpenAI's
dialect; every other one translates to and from that. Pure.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from cortex_core.errors import CortexError
from cortex_core.openai import Asked
from cortex_gateway.usage import Meter


class Translator(Protocol):
    """Turns an upstream's answer into the client's, as it arrives; any cut of the input gives the same output.

    It is what `cortex_core.http.relay` calls a Passing.
    """

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An answer that is no stream, complete; returns the client's status and body."""

    def feed(self, chunk: bytes) -> bytes:
        """The next bytes of a stream; returns what can go to the client now."""

    def close(self) -> bytes:
        """The stream has ended; returns what the client is still owed. Raises UpstreamProtocolError: too early."""

    def fail(self, error: CortexError) -> bytes:
        """The stream broke; returns the dialect's error event and its regular end."""


class Notes(NamedTuple):
    """What a translation did to a request.

    Attributes:
        dropped: names of the fields that could not be carried, for `x-cortex-dropped`.
        hygiene: names of the prefix hygiene rules that fired.
    """

    dropped: Sequence[str] = ()
    hygiene: Sequence[str] = ()


class Dialect(Protocol):
    """One API.

    Attributes:
        name: for logs.
        path: where clients ask for it.
        upstream_path: where neurons are asked.
        may_load: a model that is not up is brought up for it; else it is refused.
        ping: the event that tells a client of a stream, beside a comment, that it is still waited for; empty: a comment
            is enough. None: nothing streams here.
        without_route: what to go by where an upstream has no such path; None: it is an error.
    """

    name: str
    path: str
    upstream_path: str
    may_load: bool
    ping: bytes | None
    without_route: "Dialect | None"

    def read(self, body: bytes) -> Asked:
        """The narrow look at a request.

        Raises:
            MalformedJsonError, InvalidRequestBodyError, MissingModelFieldError: the client's fault.
        """

    def write(self, body: bytes, asked: Asked, model_id: str) -> bytes:
        """The request as the neuron is to get it, asking for `model_id`."""

    def meter(self, upstream: str, now: Callable[[], float]) -> Meter:
        """What reads usage and timings off the neuron's answer. `now` gives seconds."""

    def notes(self, asked: Asked) -> Notes:
        """What `read` changed or left out."""

    def translate(self, meter: Meter, request_id: str, asked: Asked) -> Translator:
        """What the answer to `asked` passes through, the meter included. `request_id` goes into errors."""
