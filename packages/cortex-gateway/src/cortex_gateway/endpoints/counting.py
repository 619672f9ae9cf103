# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks one neuron how many tokens a prompt has for a model that is not up there."""

from typing import NamedTuple

import msgspec

from cortex_core import wire
from cortex_core.control import CountRequest, ModelSpec
from cortex_core.errors import FleetError
from cortex_core.http.client import Client, read_all
from cortex_core.http.headers import Headers, to_client

# The neuron may have to start what counts, and gives up before.
ANSWER_S = 150.0
# It has not the files, has no room to count, does not let us, or is too old to know how. Another may.
_CANNOT = frozenset({401, 404, 405, 429, 501, 503})
_ENCODE = msgspec.json.Encoder()


class Counted(NamedTuple):
    """What a neuron answered: tokens, or what is wrong with the request or the model."""

    status: int
    headers: Headers
    body: bytes


async def ask(client: Client, spec: ModelSpec, fields: Headers, request: bytes) -> Counted | None:
    """The answer to the body of a `/tokenize`; None: it cannot tell."""
    body = _ENCODE.encode(CountRequest(spec=spec, request=msgspec.Raw(request)))
    opening = client.open(
        "POST", wire.COUNT_PATH, headers=fields, body=body, idle_timeout_s=ANSWER_S
    )
    try:
        async with opening as reply:
            answer = await read_all(reply)
    except FleetError:
        return None
    if reply.status in _CANNOT:
        return None
    return Counted(reply.status, to_client(reply.headers), answer)
