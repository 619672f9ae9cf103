# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engines a host can run: harness to class, imported on use, since one's libraries are never another's."""

ENGINES = {
    "vllm": "neuron.host.engines.vllm:VllmEngine",
    "echo": "neuron.host.engines.echo:EchoEngine",
}
