# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kinds of engine there are: name to class, imported on use.

To add one: a module here with a subclass of `hosted.Hosted`, a line in HARNESSES, its settings in
`neuron.config`, and its engine in `neuron.host.engines`.
"""

HARNESSES = {
    "vllm": "neuron.harnesses.vllm:VllmHarness",
    "echo": "neuron.harnesses.echo:EchoHarness",
}
