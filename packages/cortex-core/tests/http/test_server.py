# SPDX-License-Identifier: GPL-3.0-or-later
"""Listening: what an operator may get wrong is said clearly."""

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from cortex_core.errors import OperatorError
from cortex_core.http import server
from cortex_core.http.client import Client
from cortex_core.testing import Scripted, serving


def test_a_port_in_use_is_said_clearly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OperatorError, match=f"127.0.0.1:{port} is in use"):
            server.bind(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["31313", "host", "127.0.0.1:", "127.0.0.1:x", "a:99999", ":1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(OperatorError, match="is not host:port"):
        server.bind(address)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OperatorError, match="not one of this machine"):
        server.bind("192.0.2.1:31313")


def test_a_unix_socket_replaces_a_stale_one(tmp_path: Path) -> None:
    for _ in range(2):
        server.bind(f"unix:{tmp_path}/s").close()
    with pytest.raises(OperatorError, match="unix:"):
        server.bind(f"unix:{tmp_path}/no/s")


def test_accepted_connections_are_asked_whether_they_live() -> None:
    with (
        server.bind("127.0.0.1:0") as listening,
        socket.create_connection(listening.getsockname()),
    ):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            for name, value in server.KEEP_ALIVE_PROBES.items():
                assert accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value


LIST_FDS = """
import os
for n in range(3, 1024):
    if os.path.exists(f"/proc/self/fd/{n}"):
        print(os.readlink(f"/proc/self/fd/{n}"))
"""


async def test_what_listens_is_no_childs_too() -> None:
    """Or the port of a daemon that was killed would stay taken, and deaf, for as long as what it had started."""
    async with serving(Scripted(lambda number: (200, [], []))) as endpoint:
        client, port = Client(endpoint), int(endpoint.rpartition(":")[2])
        async with client.open("GET", "/") as reply:  # from here on it is served
            assert reply.status == 200
        await client.close()
        # as uvloop starts processes: what is inheritable is theirs
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LIST_FDS), close_fds=False, stdout=asyncio.subprocess.PIPE
        )
        listed, _ = await child.communicate()
        assert f"socket:[{inode_of(port)}]" not in listed.decode()


def inode_of(port: int) -> str:
    """Of the socket that listens there."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return next(row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A")
