# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell the service manager how the daemon is (sd_notify(3)); nothing where there is none."""

import contextlib
import socket

VARIABLE = "NOTIFY_SOCKET"


def notify(state: str, address: str) -> None:
    """Send one state, such as READY=1, to the socket that NOTIFY_SOCKET names; empty: there is none."""
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = f"\0{address[1:]}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)
