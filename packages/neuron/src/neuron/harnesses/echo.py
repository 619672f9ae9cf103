# SPDX-License-Identifier: GPL-3.0-or-later
"""What is peculiar to echo engines: no files, no devices, and behaviour asked for in the model id."""

import sys

from cortex_core.control import ModelSpec
from cortex_core.errors import LoadRefusedError
from neuron.config import Config
from neuron.harnesses.hosted import Hosted
from neuron.harnesses.run import Launch, Shared
from neuron.host.engines.echo_options import OptionsError, read_options


class EchoHarness(Hosted):
    """Engines that answer from the prompt."""

    name = "echo"

    def __init__(self, config: Config, shared: Shared) -> None:
        super().__init__(shared)
        self._settings = config.harness.echo

    async def plan_launch(self, spec: ModelSpec) -> Launch:
        try:
            read_options(spec.model_id)
        except OptionsError as error:
            raise LoadRefusedError(
                model=spec.model_id,
                load_kind="invalid_spec",
                reason=str(error),
                suggestion=error.suggestion,
            ) from None
        return Launch(
            python=sys.executable,
            start_timeout_s=self._settings.start_timeout_s,
            stop_timeout_s=self._settings.stop_timeout_s,
        )
