# SPDX-License-Identifier: GPL-3.0-or-later
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def has_answered(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return sock.recv(100).startswith(b"HTTP/1.1 200")
    except ConnectionError:
        return False


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@pytest.mark.slow
def test_it_answers_after_less_than_a_second_s_work() -> None:
    """Seconds of CPU from the start of the process to its first answer: a busy machine is no fault of ours."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "neuron",
        "serve",
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon:
        try:
            while not has_answered(port):
                assert daemon.poll() is None
                time.sleep(0.005)
            assert cpu_s(daemon.pid) < 1.0
        finally:
            daemon.terminate()
    assert daemon.returncode == 0
