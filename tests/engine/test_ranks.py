# SPDX-License-Identifier: GPL-3.0-or-later
"""What is changed in vLLM for its processes' sake."""

import gc
import threading

import pytest

zmq = pytest.importorskip("zmq")


def test_sockets_that_are_collected_after_their_context_keep_nobody() -> None:
    import neuron.host.engines.vllm_ranks  # noqa: F401  # what it changes is its use

    def collect() -> None:
        context = zmq.Context()
        socket = zmq.Context(context).socket(zmq.PUSH)
        socket.connect("tcp://127.0.0.1:9")
        garbage: list[object] = [context, socket]
        garbage.append(garbage)
        del context, socket, garbage
        gc.collect()

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    collecting.join(5)
    assert not collecting.is_alive()
