# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks an OpenAI-compatible server that is no neuron, under the base URL that it is known by."""

from contextlib import AbstractAsyncContextManager

from cortex_core.errors import UpstreamConnectionError, UpstreamProtocolError
from cortex_core.http.client import Client, RefusedError, Reply
from cortex_core.http.headers import OURS, Headers
from cortex_gateway.fleet import Report
from cortex_gateway.openai_models import OpenAIModels, describe, read_states

_VERSION = "/v1"
# Many such servers close an idle connection after 5 s, and a request that meets that is lost: none is sent twice.
KEEP_IDLE_S = 2.0
_KEY_REFUSED = (401, 403)


class OpenAIClient(Client):
    """A Client that is asked for `/v1/…` as a neuron is.

    Args:
        base_url: what its documentation tells clients to set: `https://host/api/v1`. Without a path, `/v1` is meant.
        idle_timeout_s, headers: as Client's.
    """

    def __init__(self, base_url: str, *, idle_timeout_s: float, headers: Headers) -> None:
        endpoint, self._cut = read_base_url(base_url)
        super().__init__(
            endpoint, idle_timeout_s=idle_timeout_s, headers=headers, keep_idle_s=KEEP_IDLE_S
        )

    def open(
        self,
        method: str,
        path: str,
        *,
        headers: Headers | None = None,
        body: bytes | None = None,
        idle_timeout_s: float | None = None,
        head_timeout_s: float | None = None,
    ) -> AbstractAsyncContextManager[Reply]:
        return super().open(
            method,
            path.removeprefix(self._cut),
            headers=[field for field in headers or [] if not field[0].startswith(OURS)],
            body=body,
            idle_timeout_s=idle_timeout_s,
            head_timeout_s=head_timeout_s,
        )

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
