# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks an OpenAI-compatible server that is no neuron, under the base URL that it is known by."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from cortex_core.errors import UpstreamConnectionError, UpstreamProtocolError
from cortex_core.http.client import Client, RefusedError, Reply, Whole, read_all
from cortex_core.http.headers import OURS, Headers, find
from cortex_core.wire import DROPPED
from cortex_gateway.fleet import Report
from cortex_gateway.openai_models import OpenAIModels, describe, read_states
from cortex_gateway.refused_fields import MAX_ATTEMPTS, Wording

_VERSION = "/v1"
# Many such servers close an idle connection after 5 s, and a request that meets that is lost: none is sent twice.
KEEP_IDLE_S = 2.0
_KEY_REFUSED = (401, 403)
# How a request is refused for its fields.
_DOES_NOT_FIT = (400, 422)
# What may work later, and when, where it does not say that itself.
_RETRY_AFTER_S = {502: 2, 503: 5, 504: 5}


class OpenAIClient(Client):
    """A Client that is asked for `/v1/…` as a neuron is.

    Args:
        base_url: what its documentation tells clients to set: `https://host/api/v1`. Without a path, `/v1` is meant.
        idle_timeout_s, headers: as Client's.
    """

    def __init__(self, base_url: str, *, idle_timeout_s: float, headers: Headers) -> None:
        endpoint, self._cut = read_base_url(base_url)
        self._refused: dict[bytes, frozenset[str]] = {}  # fields, by the model that is asked
        super().__init__(
            endpoint, idle_timeout_s=idle_timeout_s, headers=headers, keep_idle_s=KEEP_IDLE_S
        )

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        headers: Headers | None = None,
        body: bytes | None = None,
        idle_timeout_s: float | None = None,
        head_timeout_s: float | None = None,
    ) -> AsyncIterator[Reply]:
        fields = [field for field in headers or [] if not field[0].startswith(OURS)]
        async with AsyncExitStack() as stack:

            async def ask(body: bytes | None) -> Reply:
                asked = Client.open(
                    self,
                    method,
                    path.removeprefix(self._cut),
                    headers=fields,
                    body=body,
                    idle_timeout_s=idle_timeout_s,
                    head_timeout_s=head_timeout_s,
                )
                return await stack.enter_async_context(asked)

            reply = await (ask(body) if body is None else self._ask_in_its_words(ask, body))
            after_s = _RETRY_AFTER_S.get(reply.status)
            if after_s is not None and find(reply.headers, b"retry-after") is None:
                reply.headers = [*reply.headers, (b"retry-after", b"%d" % after_s)]
            yield reply

    async def _ask_in_its_words(
        self, ask: Callable[[bytes], Awaitable[Reply]], body: bytes
    ) -> Reply:
        """Ask, and where it refuses fields that it can be asked without, ask again. Once that has helped, it is known."""
        wording = Wording(body, self._refused)
        reply = await ask(wording.body)
        for _ in range(MAX_ATTEMPTS):
            if reply.status not in _DOES_NOT_FIT:
                break
            told = await read_all(reply)
            if not wording.heed(told):
                reply = Whole(reply, told)
                break
            reply = await ask(wording.body)
        if reply.status < 400 and wording.refused:
            known = self._refused.get(wording.model, frozenset())
            self._refused[wording.model] = known | wording.refused
        if left_out := wording.left_out:
            reply.headers = [(DROPPED.encode(), ", ".join(left_out).encode()), *reply.headers]
        return reply

    async def look(self, timeout_s: float) -> Report:
        """What it serves now.

        Raises:
            RefusedError: it refuses our key.
            UpstreamConnectionError, UpstreamTimeoutError: it does not answer, or as no such server does.
        """
        path = f"{_VERSION}/models"
        try:
            told = await self.ask("GET", path, OpenAIModels, timeout_s=timeout_s)
        except RefusedError as refused:
            if refused.status in _KEY_REFUSED:
                raise
            raise self._strange(str(refused)) from None
        except UpstreamProtocolError as error:
            raise self._strange(str(error.facts.get("reason"))) from None
        return Report(models=read_states(told), discovery=describe(self.endpoint))

    def _strange(self, reason: str) -> UpstreamConnectionError:
        reason = f"GET {_VERSION.removeprefix(self._cut)}/models gives no list of models: {reason}"
        return UpstreamConnectionError(upstream=self.endpoint, reason=reason)


def read_base_url(base_url: str) -> tuple[str, str]:
    """The endpoint that paths such as `/v1/models` are put behind, and what is taken off their start first."""
    base = base_url.rstrip("/")
    if base.endswith(_VERSION):
        return base.removesuffix(_VERSION), ""
    has_path = "/" in base.partition("://")[2]
    return base, _VERSION if has_path else ""
