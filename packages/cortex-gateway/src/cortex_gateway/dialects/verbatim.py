# SPDX-License-Identifier: GPL-3.0-or-later
"""The dialects that neurons speak themselves: nothing is re-encoded, only a model that is called otherwise is put in. Pure."""

from collections.abc import Callable

import msgspec

from cortex_core import openai
from cortex_core.errors import RouteNotFoundError
from cortex_core.openai import Asked
from cortex_gateway.dialects.dialect import Dialect, Notes
from cortex_gateway.usage import Meter

# How servers say that they have no such path, or none that takes a POST.
NO_ROUTE = frozenset({404, 405, 501})
_READ = msgspec.json.Decoder()


def lacks_route(status: int, body: bytes) -> bool:
    """Whether an answer says that the server has no such path, rather than no such model."""
    if status not in NO_ROUTE:
        return False
    try:
        answer = _READ.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True  # a page of the server's own
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    if not isinstance(error, dict) or error.get("code") == RouteNotFoundError.code:
        return True
    return "model" not in str(error).lower()  # of all servers, the refusals of a model say so


class Verbatim:
    """A path of OpenAI's API, served by the same path of a neuron.

    Args:
        name: for logs.
        path: the same on both sides.
        has_content: whether an event's data holds something that the model said.
    """

    may_load = True
    ping: bytes | None = b""
    without_route: Dialect | None = None

    def __init__(self, name: str, path: str, has_content: Callable[[bytes], bool]) -> None:
        self.name = name
        self.path = path
        self.upstream_path = path
        self._has_content = has_content

    def read(self, body: bytes) -> Asked:
        return openai.read_asked(body)

    def write(self, body: bytes, asked: Asked, model_id: str) -> bytes:
        return body if asked.model == model_id else openai.rename_model(body, model_id)

    def meter(self, upstream: str, now: Callable[[], float]) -> Meter:
        return Meter(upstream, now, self._has_content)

    def notes(self, asked: Asked) -> Notes:
        return Notes()

    def translate(self, meter: Meter, request_id: str, asked: Asked) -> Meter:
        return meter
