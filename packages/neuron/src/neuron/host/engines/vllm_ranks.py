# SPDX-License-Identifier: GPL-3.0-or-later
"""How do EngineCore and its ranks come to be, and wait? Importing this module imports vLLM."""

import ctypes
import os
import signal

import torch
import zmq
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.platforms import current_platform

from neuron.host.engines.vllm_options import count_threads

# How long a rank looks for its next order without rest after one. In vLLM a second, so that a heartbeat each half second
# keeps a core per rank busy for ever; on two cores nothing else went on. Not none: a word to wake it that follows another within
# a millisecond may be dropped by ZeroMQ (a full queue of one whose taking the sender has not heard of yet).
SPIN_S = 0.05

# vLLM leaves contexts of ZeroMQ to the garbage collector, where one waits for ever for sockets that are collected after it, in
# whichever thread that happens to be. They end with the process.
del zmq.Context.__del__


def prepare_ranks(ranks: int) -> None:
    """Have EngineCore and its ranks forked where that is safe: they inherit the imports, most of a load's time.

    On a CPU vLLM insists on spawn for the sake of processes that use threads already. A host has run no
    model and started no pool by now. Measured on two cores: with two ranks up in 4.5 s when forked, 15 s when spawned, and
    down in 1.5 s and 8 to 22 s. On CUDA vLLM forks by itself until CUDA is initialised.
    """
    SpinCondition.__init__.__defaults__ = (SPIN_S,)
    if current_platform.is_cpu():
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(count_threads(ranks, len(os.sched_getaffinity(0))))


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _part_from_host() -> None:
    """What a forked child must change at once."""
    # It would write the signals it gets into the pipe that wakes the host's loop: ending EngineCore with
    # SIGTERM would be a SIGTERM to the host.
    signal.set_wakeup_fd(-1)
    # EngineCore does not look after its parent: without a host it would run for ever. The kernel counts the end
    # of the thread that forked, one of the loop's pool: it lives as long as the loop.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


os.register_at_fork(after_in_child=_part_from_host)
