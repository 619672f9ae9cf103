# SPDX-License-Identifier: GPL-3.0-or-later
"""POST /models/count: how many tokens a prompt has for a model, whether that is up or not."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import msgspec

from cortex_core import openai, wire
from cortex_core.control import CountRequest, ModelSpec
from cortex_core.errors import (
    EngineDiedError,
    FleetError,
    LoadFailedError,
    LoadRefusedError,
    ModelLoadingError,
    ModelNotLoadedError,
    UpstreamTimeoutError,
)
from cortex_core.http.exchange import Exchange
from cortex_core.http.front import Handler
from cortex_core.http.relay import Verbatim, relay
from cortex_core.node import ModelStatus
from neuron.admission import TurnedAwayError
from neuron.harnesses.counters import Counters
from neuron.harnesses.hosted import Hosted
from neuron.harnesses.run import Launch
from neuron.harnesses.specs import check_spec
from neuron.residents import Residents
from neuron.traffic import Link, Traffic

# Of whom the host can count: it has the tokenizer, awake or not.
_UP = (ModelStatus.LOADED, ModelStatus.SLEEPING)
# The longest prompts of all take seconds.
ANSWER_S = 60.0
_PATH = "/tokenize"
_READ = msgspec.json.Decoder(CountRequest)


class Counting:
    """The route.

    Args:
        node: this machine, for errors.
        residents: what is here, in whatever status.
        traffic: how the engines that are up are reached.
        harnesses: by name.
        counters: count for models that are not up.
        defaults: the specs of neuron.toml: where one has the model, it says more than who asks.
    """

    def __init__(
        self,
        *,
        node: str,
        residents: Residents,
        traffic: Traffic,
        harnesses: Mapping[str, Hosted],
        counters: Counters,
        defaults: Iterable[ModelSpec],
    ) -> None:
        self._node = node
        self._residents = residents
        self._traffic = traffic
        self._harnesses = harnesses
        self._counters = counters
        self._defaults = {spec.model_id: spec for spec in defaults}

    def routes(self) -> dict[str, Handler]:
        """Path to handler."""
        return {wire.COUNT_PATH: self.count}

    async def count(self, exchange: Exchange, body: bytes) -> None:
        """Answer as the model's `/tokenize` would."""
        asked = openai.read_body(body, _READ)
        spec = self._find_spec(asked.spec)
        check_spec(spec)
        exchange.notes["model"] = spec.model_id
        request = openai.rename_model(bytes(asked.request), spec.model_id)
        async with self._open(spec) as link:
            opening = link.client.open("POST", _PATH, body=request, idle_timeout_s=ANSWER_S)
            try:
                async with opening as reply:
                    await relay(exchange, reply, Verbatim(spec.model_id), [])
            except UpstreamTimeoutError:
                raise
            except FleetError as error:
                raise EngineDiedError(model=spec.model_id, reason=error.message) from None

    def _find_spec(self, asked: ModelSpec) -> ModelSpec:
        resident = self._residents.find(asked.model_id)
        return resident.spec if resident else self._defaults.get(asked.model_id, asked)

    @asynccontextmanager
    async def _open(self, spec: ModelSpec) -> AsyncIterator[Link]:
        """Who counts for the model, held: its engine's host where that is up."""
        resident, link = self._residents.get(spec.model_id), self._traffic.find(spec.model_id)
        if resident is None or link is None or resident.status not in _UP:
            async with self._counters.open(spec, await self._plan(spec)) as found:
                yield found
            return
        try:
            async with link.place(spec.model_id, generates=False):
                yield link
        except TurnedAwayError:
            raise ModelLoadingError(model=spec.model_id, node=self._node) from None

    async def _plan(self, spec: ModelSpec) -> Launch:
        harness = self._harnesses.get(spec.harness)
        if harness is None:
            raise ModelNotLoadedError(model=spec.model_id)
        try:
            return await harness.plan_count(spec)
        except LoadRefusedError as error:
            if error.facts["load_kind"] == "repo_fetch_failed":
                raise ModelNotLoadedError(model=spec.model_id) from None
            facts = error.facts
            raise LoadFailedError(
                model=spec.model_id,
                node=self._node,
                load_kind=facts["load_kind"],
                reason=facts["reason"],
            ) from None
