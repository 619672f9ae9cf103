# SPDX-License-Identifier: GPL-3.0-or-later
"""What a trial consists of: the daemons' configurations, and the lines to try. Pure."""

import json

import msgspec

from cortex_core.wire import GATEWAY_PORT, METRICS_PORT, NEURON_PORT

HOST = "127.0.0.1"
MODELS = {"vllm": "helexa/demo", "echo": "echo/small"}
QUESTION = "What is cortex?"
PROMPT = "cortex is"


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway and one neuron on loopback. `harness` is `vllm` or `echo`."""

    harness: str = "vllm"
    gateway_port: int = GATEWAY_PORT
    metrics_port: int = METRICS_PORT
    neuron_port: int = NEURON_PORT

    @property
    def model(self) -> str:
        """The model that is served."""
        return MODELS[self.harness]

    @property
    def gateway(self) -> str:
        """The gateway's endpoint."""
        return f"http://{HOST}:{self.gateway_port}"

    @property
    def metrics(self) -> str:
        """Where the gateway's metrics are."""
        return f"http://{HOST}:{self.metrics_port}/metrics"

    @property
    def neuron(self) -> str:
        """The neuron's endpoint."""
        return f"http://{HOST}:{self.neuron_port}"

    @property
    def addresses(self) -> dict[str, str]:
        """The option that moves it, and each address that is listened on."""
        return {
            "--port-gateway": f"{HOST}:{self.gateway_port}",
            "--port-metrics": f"{HOST}:{self.metrics_port}",
            "--port-neuron": f"{HOST}:{self.neuron_port}",
        }

    def files(self, folder: str) -> dict[str, str]:
        """The configuration files, by name. `folder`: where all that is kept is kept, and goes with it."""
        return {
            "cortex.toml": _GATEWAY.format(trial=self, host=HOST),
            "models.toml": _CATALOGUE.format(trial=self),
            "neuron.toml": _NEURON.format(trial=self, host=HOST, folder=folder),
        }

    def lines_to_try(self, cortex: str) -> list[str]:
        """Commands for another terminal. `cortex` is how that command is called here."""
        chat = {
            "model": self.model,
            "stream": True,
            "messages": [{"role": "user", "content": QUESTION}],
        }
        completion = {"model": self.model, "prompt": PROMPT, "max_tokens": 16}
        endpoint = "" if self.gateway_port == GATEWAY_PORT else f" --endpoint {self.gateway}"
        return [
            _curl(f"{self.gateway}/v1/chat/completions", chat, "-N "),
            f"curl {self.gateway}/v1/models",
            _curl(f"{self.gateway}/v1/completions", completion),
            f"{cortex} status{endpoint}",
        ]


def _curl(url: str, body: object, options: str = "") -> str:
    return f"curl {options}{url} -H 'content-type: application/json' \\\n  -d '{json.dumps(body)}'"


_GATEWAY = """\
[gateway]
listen = "{host}:{trial.gateway_port}"
metrics_listen = "{host}:{trial.metrics_port}"
drain_s = 5

[poll]
interval_s = 1

[[neurons]]
name = "here"
endpoint = "{trial.neuron}"
"""

_CATALOGUE = """\
[[models]]
id = "{trial.model}"
harness = "{trial.harness}"
"""

_NEURON = """\
listen = "{host}"
port = {trial.neuron_port}
drain_s = 5
state_dir = "{folder}"

[[harnesses]]
name = "{trial.harness}"

[harness.vllm]
platform = "cpu"
warm_spare = false

[[default_models]]
model_id = "{trial.model}"
harness = "{trial.harness}"
"""
