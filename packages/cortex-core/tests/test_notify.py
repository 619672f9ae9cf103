# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import socket
import tempfile

import pytest

from cortex_core.notify import feed_watchdog, notify


def test_the_service_manager_hears_each_state() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="nt") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{folder}/notify")
        notify("READY=1", {"NOTIFY_SOCKET": f"{folder}/notify"})
        assert manager.recv(100) == b"READY=1"
        notify("READY=1", {"NOTIFY_SOCKET": f"{folder}/nobody"})


def test_an_abstract_socket_is_heard_as_well() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0neuron-test-notify")
        notify("STOPPING=1", {"NOTIFY_SOCKET": "@neuron-test-notify"})
        assert manager.recv(100) == b"STOPPING=1"


def test_without_a_service_manager_nothing_happens() -> None:
    notify("READY=1", {})


async def test_the_watchdog_is_fed_twice_in_its_time() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0neuron-test-watchdog")
        manager.setblocking(False)
        environ = {"NOTIFY_SOCKET": "@neuron-test-watchdog", "WATCHDOG_USEC": "40000"}
        feeding = asyncio.create_task(feed_watchdog(environ))
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        fed = [await loop.sock_recv(manager, 100) for _ in range(4)]
        feeding.cancel()
        assert fed == [b"WATCHDOG=1"] * 4
        assert loop.time() - began_s >= 0.06


@pytest.mark.parametrize("wanted", ["", "0", "soon"])
async def test_a_watchdog_that_nobody_wants_is_not_fed(wanted: str) -> None:
    async with asyncio.timeout(1):
        await feed_watchdog({"WATCHDOG_USEC": wanted})
