# SPDX-License-Identifier: GPL-3.0-or-later
"""The dialects that neurons speak themselves: nothing is re-encoded, only a model that is called otherwise is put in. Pure."""

from collections.abc import Callable

from cortex_core import openai
from cortex_core.openai import Asked
from cortex_gateway.dialects.dialect import Notes
from cortex_gateway.usage import Meter


class Verbatim:
    """A path of OpenAI's API, served by the same path of a neuron.

    Args:
        name: for logs.
        path: the same on both sides.
        has_content: whether an event's data holds something that the model said.
    """

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

    def translate(self, meter: Meter, request_id: str) -> Meter:
        return meter
