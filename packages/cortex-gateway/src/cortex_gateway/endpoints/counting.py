# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks neurons how many tokens a prompt has for a model that is not up there."""

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from cortex_core import wire
from cortex_core.control import CountRequest, ModelSpec
from cortex_core.errors import FleetError
from cortex_core.http.client import Client, read_all
from cortex_core.http.headers import Headers, to_client
from cortex_gateway.routing.counting import Counters
from cortex_gateway.routing.plan import Serve

# The neuron may have to start what counts, and gives up before. All that are asked have it together.
ANSWER_S = 150.0
# It has not the files, has no room to count, does not let us, or is too old to know how. Another may.
_CANNOT = frozenset({401, 404, 405, 429, 501, 503})
_ENCODE = msgspec.json.Encoder()


class Counted(NamedTuple):
    """What a neuron answered: tokens, or what is wrong with the request or the model."""

    status: int
    headers: Headers
    body: bytes


async def ask_each(
    clients: Mapping[str, Client],
    counters: Counters,
    fields: Headers,
    write: Callable[[Serve], bytes],
    within_s: float = ANSWER_S,
) -> tuple[Serve, Counted] | None:
    """Who could tell first, and what; None: nobody could in time.

    Args:
        clients: one per node, as they are now.
        counters: whom to ask.
        fields: headers.
        write: gives the body of the `/tokenize` for a place.
        within_s: seconds that all of them have together.
    """
    try:
        async with asyncio.timeout(within_s):
            for served in counters.places:
                client = clients.get(served.node)
                if client is None:  # it has left while another was asked
                    continue
                counted = await ask(client, counters.spec, fields, write(served))
                if counted is not None:
                    return served, counted
    except TimeoutError:
        pass
    return None


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
