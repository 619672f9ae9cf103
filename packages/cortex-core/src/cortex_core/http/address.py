# SPDX-License-Identifier: GPL-3.0-or-later
"""Where is an endpoint, and is it a plain one? Pure."""

import re

import msgspec

_TCP = re.compile(
    r"http://(?P<netloc>(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?)(?P<prefix>/[A-Za-z0-9._~%!$&'()*+,;=:@/-]*)?"
)


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where an endpoint is.

    Attributes:
        host: a name or an IP address; the path of a unix socket.
        port: None: it is a unix socket.
        netloc: what `Host` says.
        prefix: begins every path.
    """

    host: str
    port: int | None
    netloc: str
    prefix: str = ""


def read_address(endpoint: str) -> Address | None:
    """The address of `unix:/path` or `http://host:port`; None: it is anything else."""
    if endpoint.startswith("unix:"):
        return Address(host=endpoint.removeprefix("unix:"), port=None, netloc="engine")
    found = _TCP.fullmatch(endpoint)
    port = int(found["port"] or 80) if found else 0
    if found is None or port > 65535:
        return None
    return Address(
        host=found["host"].strip("[]"),
        port=port,
        netloc=found["netloc"],
        prefix=found["prefix"] or "",
    )
