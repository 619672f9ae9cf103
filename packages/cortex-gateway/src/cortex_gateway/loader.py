# SPDX-License-Identifier: GPL-3.0-or-later
"""Has models loaded, once however many ask, and holds those who wait for one.

The neuron owns the answer to "is it loaded": it is asked to have the model loaded, whatever it has now. A waiter that
leaves does not end a load; a failure is told to everyone who waits, and the next request tries anew.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from cortex_core import logs
from cortex_core.control import LoadAnswer, LoadRequest
from cortex_core.errors import (
    BusyError,
    CortexError,
    FleetError,
    InsufficientVramError,
    InternalError,
    LoadFailedError,
    ModelLoadingError,
    NoHealthyNodeError,
    ShuttingDownError,
    UpstreamConnectionError,
    UpstreamTimeoutError,
)
from cortex_core.http.client import Client, RefusedError
from cortex_core.node import ModelStatus
from cortex_gateway.fleet import Fleet, Place
from cortex_gateway.poller import Poller
from cortex_gateway.routing.plan import Load, Wait

log = logs.get(__name__)

# A load from a slow disk or network takes long; a node that dies meanwhile is noticed by the poller, not by this.
LOAD_S = 3600.0
# How soon the end of a load that somebody else asked for is noticed.
WATCH_S = 0.25
_PASSING = (ModelStatus.LOADING, ModelStatus.UNLOADING)

OnLoaded = Callable[[str, str, float], None]


class _Flight:
    """One load, or somebody else's load that is watched, and how it ended."""

    def __init__(self, *, is_ours: bool) -> None:
        self.is_ours = is_ours
        self.ended = asyncio.Event()
        self.error: CortexError | None = None
        self.task: asyncio.Task[None] | None = None


class Loader:
    """Carries out Load and Wait.

    Args:
        fleet: told which loads are under way.
        clients: one per node.
        poller: looks at a node at once after its load, so that the next plan sees the model.
        tasks: where loads run.
        on_loaded: told model, node and seconds of each load that was done.
    """

    def __init__(
        self,
        fleet: Fleet,
        clients: Mapping[str, Client],
        poller: Poller,
        tasks: asyncio.TaskGroup,
        on_loaded: OnLoaded,
    ) -> None:
        self._fleet = fleet
        self._clients = clients
        self._poller = poller
        self._tasks = tasks
        self._on_loaded = on_loaded
        self._flights: dict[Place, _Flight] = {}
        self._closed = False

    async def load(self, load: Load, deadline_s: float) -> None:
        """Return when the model is loaded, by whomever.

        Args:
            load: what and where.
            deadline_s: monotonic seconds.

        Raises:
            LoadFailedError: it failed for good.
            BusyError: it did not come up, and may do so later; or the deadline has passed; or the gateway stops.
        """
        place = (load.node, load.spec.model_id)
        flight = self._join(place, lambda: self._load(load), is_ours=True)
        await self._wait(flight, place, load.model, deadline_s)

    async def wait(self, wait: Wait, deadline_s: float) -> None:
        """Return when the model's state has changed. Raises as `load`."""
        place = (wait.node, wait.model_id)
        flight = self._join(place, lambda: self._watch(place), is_ours=False)
        await self._wait(flight, place, wait.model, deadline_s)

    def lose(self, node: str) -> None:
        """The node is down: everyone who waits for a load there is told."""
        for place in [place for place in self._flights if place[0] == node]:
            self._abandon(place, _lost(place, "it stopped answering"))

    def close(self) -> None:
        """The gateway stops: everyone who waits is told, and nothing more is begun."""
        self._closed = True
        for place in list(self._flights):
            self._abandon(place, ShuttingDownError(daemon="gateway"))

    def _join(
        self, place: Place, work: Callable[[], Coroutine[Any, Any, None]], *, is_ours: bool
    ) -> _Flight:
        if self._closed:
            raise ShuttingDownError(daemon="gateway")
        flight = self._flights.get(place)
        if flight is None:
            flight = self._flights[place] = _Flight(is_ours=is_ours)
            if is_ours:  # now, not when the task first runs: others plan in between
                self._fleet.note_load_begun(place)
            flight.task = self._tasks.create_task(self._fly(place, flight, work()))
        return flight

    async def _wait(self, flight: _Flight, place: Place, model: str, deadline_s: float) -> None:
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                await flight.ended.wait()
        except TimeoutError:
            raise self._still_loading(place, model) from None
        if flight.error is not None:
            raise flight.error

    async def _fly(self, place: Place, flight: _Flight, work: Coroutine[Any, Any, None]) -> None:
        error: CortexError | None = None
        try:
            await work
        except CortexError as failed:
            error = failed
        except Exception:  # a fault of ours: those who wait must not wait on
            log.exception("load broke", node=place[0], model=place[1])
            error = InternalError(daemon="gateway", request_id="none")
        self._end(place, flight, error)

    def _end(self, place: Place, flight: _Flight, error: CortexError | None) -> None:
        if (
            not flight.ended.is_set()
        ):  # else it was abandoned, and its place may be another's by now
            flight.error = error
            flight.ended.set()
            del self._flights[place]
            if flight.is_ours:
                self._fleet.note_load_ended(place)

    def _abandon(self, place: Place, error: CortexError) -> None:
        flight = self._flights[place]
        self._end(place, flight, error)
        if flight.task:
            flight.task.cancel()

    async def _load(self, load: Load) -> None:
        began_s = time.monotonic()
        try:
            answer = await self._ask(load)
        except CortexError as error:
            log.warning("load failed", model=load.model, node=load.node, reason=error.message)
            await self._poller.poll(load.node)
            raise
        # before those who wait are woken, so that their plan finds it
        await self._poller.poll(load.node)
        if not answer.already:
            load_s = time.monotonic() - began_s
            log.info(
                "model loaded",
                model=load.model,
                node=load.node,
                reason=load.reason,
                load_s=round(load_s, 3),
            )
            self._on_loaded(load.model, load.node, load_s)

    async def _ask(self, load: Load) -> LoadAnswer:
        spec = load.spec
        fields = {name: getattr(spec, name) for name in spec.__struct_fields__}
        client = self._clients[load.node]
        try:
            return await client.ask(
                "POST", "/models/load", LoadAnswer, LoadRequest(**fields), timeout_s=LOAD_S
            )
        except RefusedError as refused:
            raise _read_refusal(load, refused) from None
        except (UpstreamConnectionError, UpstreamTimeoutError) as error:
            raise _lost((load.node, load.model), error.message) from None

    async def _watch(self, place: Place) -> None:
        node, model_id = place
        while True:
            await self._poller.poll(node)
            state = self._fleet.node(node).state(model_id)
            if state is None or state.status not in _PASSING:
                return
            await asyncio.sleep(WATCH_S)

    def _still_loading(self, place: Place, model: str) -> ModelLoadingError:
        state = self._fleet.node(place[0]).state(place[1])
        progress = state.progress if state else None
        eta_s = progress.eta_s if progress else None
        return ModelLoadingError(
            model=model,
            node=place[0],
            eta_s=eta_s,
            retry_after_s=eta_s,
            phase=progress.phase if progress else None,
        )


def _lost(place: Place, reason: str) -> NoHealthyNodeError:
    return NoHealthyNodeError(
        model=place[1], reason=f"{place[0]} was lost during the load: {reason}"
    )


def _read_refusal(load: Load, refused: RefusedError) -> BusyError | FleetError:
    """A neuron's refusal to load, as the client is told of it: what may pass is 503, what will not is 502."""
    if refused.code == "insufficient_vram":
        return InsufficientVramError(model=load.model, reason=f"{load.node}: {refused.message}")
    if refused.status == 503:
        return NoHealthyNodeError(model=load.model, reason=f"{load.node}: {refused.message}")
    kind = refused.facts.get("load_kind") or refused.code or f"status_{refused.status}"
    reason = refused.facts.get("reason") or refused.message
    return LoadFailedError(model=load.model, node=load.node, load_kind=kind, reason=reason)
