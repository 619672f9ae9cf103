# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may ask this daemon?"""

from collections.abc import Iterable
from ipaddress import ip_address

from cortex_core.errors import CortexError, InvalidApiKeyError
from cortex_core.http.exchange import Exchange
from cortex_core.http.keys import Key

# Load balancers ask it, and hold no secrets. Whoever shows none is told that the daemon is alive, and no more.
OPEN_PATH = "/health"


class Secret:
    """The secret that callers must show; None: there is none, and everyone may ask."""

    def __init__(self, text: str | None) -> None:
        self._key = None if text is None else Key(text)

    def admit(self, exchange: Exchange) -> CortexError | None:
        """Why a request is refused; None: it is not."""
        if exchange.path == OPEN_PATH or self.is_shown(exchange.scope["headers"]):
            return None
        return InvalidApiKeyError()

    def is_shown(self, fields: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request's headers hold it, or need not."""
        return self._key is None or self._key.is_shown(fields)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen on. A name other than `localhost` counts as reachable."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
