# SPDX-License-Identifier: GPL-3.0-or-later
import os
import subprocess
import sys

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


def test_a_process_is_in_its_own_group() -> None:
    assert machine.group_of(os.getpid()) == os.getpgrp()
