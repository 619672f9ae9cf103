# SPDX-License-Identifier: GPL-3.0-or-later
import socket
import tempfile

from neuron.notify import notify


def test_the_service_manager_hears_each_state() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="nt") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{folder}/notify")
        notify("READY=1", f"{folder}/notify")
        assert manager.recv(100) == b"READY=1"
        notify("READY=1", f"{folder}/nobody")


def test_an_abstract_socket_is_heard_as_well() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0neuron-test-notify")
        notify("STOPPING=1", "@neuron-test-notify")
        assert manager.recv(100) == b"STOPPING=1"


def test_without_a_service_manager_nothing_happens() -> None:
    notify("READY=1", "")
