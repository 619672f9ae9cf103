# SPDX-License-Identifier: GPL-3.0-or-later
import os
import signal
import subprocess
import sys

import pytest

from neuron import machine


def test_the_machine_has_a_name_and_memory() -> None:
    found = machine.read_machine()
    assert all([found.hostname, found.os, found.kernel, found.cpu_name])
    assert 0 < (machine.ram_free_mb() or 0) <= found.host_ram_mb


def test_a_process_group_is_measured_with_all_its_members() -> None:
    code = "import sys; held = bytearray(40 << 20); print('here', flush=True); sys.stdin.read()"
    leader = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with leader:
        assert leader.stdin
        assert leader.stdout
        leader.stdout.readline()
        assert machine.group_members({leader.pid}) == [(leader.pid, leader.pid)]
        used_mb = machine.groups_ram_mb({leader.pid})
        assert used_mb.keys() == {leader.pid}
        assert 40 <= used_mb[leader.pid] < 200
        leader.stdin.close()
    assert machine.groups_ram_mb({leader.pid}) == {}
    assert machine.group_of(leader.pid) == 0


def test_stopped_processes_and_their_shared_memory_are_found() -> None:
    code = """
import multiprocessing
from multiprocessing import shared_memory
segment = shared_memory.SharedMemory(create=True, size=4096)
lock = multiprocessing.get_context("spawn").Lock()
print(segment.name, lock._semlock.name, flush=True)
input()
segment.unlink()
"""
    leader = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with leader:
        assert leader.stdin
        assert leader.stdout
        segment, semaphore = leader.stdout.readline().decode().split()
        names = {path.name for path in machine.shared_memory_of(leader.pid)}
        assert names == {segment, f"sem.{semaphore.strip('/')}"}
        assert machine.stopped_in(leader.pid) == []
        os.kill(leader.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, leader.pid, os.WSTOPPED | os.WNOWAIT)
        assert machine.stopped_in(leader.pid) == [leader.pid]
        os.kill(leader.pid, signal.SIGCONT)
        leader.stdin.close()
    assert machine.shared_memory_of(leader.pid) == set()


def test_a_process_is_in_its_own_group() -> None:
    assert machine.group_of(os.getpid()) == os.getpgrp()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.133.20  Sun Mar 23 06:00:00 UTC 2025\n"
            "GCC version:  gcc version 13.3.0\n",
            "570.133.20",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n",
            "580.95.05",
        ),
        ("GCC version:  gcc version 13.3.0 \n", None),
        ("", None),
    ],
)
def test_the_kernel_module_tells_its_version(text: str, version: str | None) -> None:
    assert machine.read_kernel_module(text) == version
