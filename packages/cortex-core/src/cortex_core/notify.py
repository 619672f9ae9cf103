# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell the service manager how the daemon is (sd_notify(3)); nothing where there is none."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping

SOCKET = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"
VARIABLES = (SOCKET, WATCHDOG, "WATCHDOG_PID")
_US_PER_S = 1_000_000


def notify(state: str, environ: Mapping[str, str]) -> None:
    """Send one state, such as READY=1, to the socket that NOTIFY_SOCKET names; absent: there is none."""
    address = environ.get(SOCKET)
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = f"\0{address[1:]}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)


async def feed_watchdog(environ: Mapping[str, str]) -> None:
    """Say in time that this event loop turns, for as long as it does; at once over where nobody wants to know."""
    wanted = environ.get(WATCHDOG, "")
    while wanted.isdigit() and int(wanted):
        notify("WATCHDOG=1", environ)
        await asyncio.sleep(int(wanted) / _US_PER_S / 2)
