# SPDX-License-Identifier: GPL-3.0-or-later
"""What is peculiar to echo engines: no files, no devices, and behaviour asked for in the model id."""

import sys

from cortex_core.control import ModelSpec, PlanAnswer
from cortex_core.errors import LoadRefusedError
from cortex_core.node import ModelStatus
from neuron.config import Config
from neuron.harnesses.failures import refused_plan
from neuron.harnesses.hosted import Hosted
from neuron.harnesses.run import Launch, Shared
from neuron.harnesses.specs import check_spec
from neuron.host.engines.echo_options import OptionsError, read_options
from neuron.room import RISING

# An engine is lost that is silent for as long, where neuron.toml does not say.
HEARTBEAT_S = 60.0


class EchoHarness(Hosted):
    """Engines that answer from the prompt."""

    name = "echo"

    def __init__(self, config: Config, shared: Shared) -> None:
        super().__init__(shared)
        self._settings = config.harness.echo

    async def plan(self, spec: ModelSpec, *, vram_mb: int | None = None) -> PlanAnswer:
        try:
            check_spec(spec)
            _check_options(spec)
        except LoadRefusedError as error:
            return refused_plan(spec, error)
        resident = self._shared.residents.find(spec.model_id)
        up = resident is not None and resident.status in (ModelStatus.LOADED, *RISING)
        return PlanAnswer(model_id=spec.model_id, fits=True, already=up)

    async def plan_count(self, spec: ModelSpec) -> Launch:
        return await self.plan_launch(spec)

    async def plan_launch(self, spec: ModelSpec) -> Launch:
        _check_options(spec)
        return Launch(
            python=sys.executable,
            start_timeout_s=self._settings.start_timeout_s,
            stop_timeout_s=self._settings.stop_timeout_s,
            heartbeat_timeout_s=self._shared.supervision.heartbeat_timeout_s or HEARTBEAT_S,
        )


def _check_options(spec: ModelSpec) -> None:
    try:
        read_options(spec.model_id)
    except OptionsError as error:
        raise LoadRefusedError(
            model=spec.model_id,
            load_kind="invalid_spec",
            reason=str(error),
            suggestion=error.suggestion,
        ) from None
