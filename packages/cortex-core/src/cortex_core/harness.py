# SPDX-License-Identifier: GPL-3.0-or-later
"""What a neuron asks of an adapter for one kind of engine. Pure.

To add a harness: one module in `neuron.harnesses` with a class that fulfils this, one line in its table.
"""

from collections.abc import Mapping
from typing import Protocol

from cortex_core.control import ModelSpec, PlanAnswer
from cortex_core.node import ModelActivity, ModelState


class Harness(Protocol):
    """Runs engines of one kind. One engine serves one model.

    Answers of `health`, `models` and `endpoint` come from memory: they never wait for an engine.
    """

    name: str

    async def start(self) -> None:
        """Get ready to load. May do nothing."""

    async def stop(self) -> None:
        """End every engine, within a bound. May do nothing."""

    def health(self) -> list[ModelActivity]:
        """What each engine is doing, as last heard."""

    def models(self) -> Mapping[str, ModelState]:
        """What is resident, by the id it was loaded under."""

    async def load(self, spec: ModelSpec, *, wait: bool = True) -> ModelState:
        """Bring the model up, or join the load of it that is under way; return when it serves.

        Without `wait`, return as soon as the load is under way and its spec was found sound.

        Raises:
            LoadRefusedError: the spec cannot work; the caller's fault.
            SpecConflictError: it is resident with another spec.
            LoadFailedError: the engine did not come up; the message has the true cause.
        """

    async def unload(self, model_id: str, *, force: bool = False) -> bool:
        """Take the model down; False: it was not there. Drains first, unless `force`."""

    async def sleep(self, model_id: str, *, force: bool = False) -> bool:
        """Put the model to sleep; False: it sleeps already. Drains first, unless `force`.

        Where it does not work as promised, the model is unloaded instead.

        Raises:
            ModelNotFoundError: it is not here.
            CannotSleepError: engines of this kind, or on this platform, do not sleep.
            WaitTimeoutError: its requests did not end; it serves on.
        """

    async def wake(self, model_id: str) -> bool:
        """Have the model serve again; False: it does already. As `load`, of what is here.

        Raises:
            ModelNotFoundError: it is not here.
        """

    async def reload(self, model_id: str, *, force: bool = False) -> bool:
        """Have a model that serves do so in a new process; False: it does not serve, and stays as it is.

        Drains first, unless `force`. It goes on though its caller leaves: a model is not left down half-way.

        Raises:
            ModelNotFoundError: it is not here.
            WaitTimeoutError: its requests did not end; it serves on.
            LoadRefusedError, LoadFailedError: it did not come up again.
        """

    async def plan(self, spec: ModelSpec, *, vram_mb: int | None = None) -> PlanAnswer:
        """Whether the spec would fit now, and what would have to go. Loads, fetches and holds nothing.

        Args:
            spec: what would be loaded.
            vram_mb: MiB that it is said to need, for when nothing better is known.
        """

    def endpoint(self, model_id: str) -> str | None:
        """Where the model's engine is reached from this machine; None: it does not serve now."""
