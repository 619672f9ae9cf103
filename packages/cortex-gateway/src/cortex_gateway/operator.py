# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out what operators want of the fleet: models moved and pinned, nodes drained, plans told."""

import time
from typing import Literal

import msgspec

from cortex_core import logs
from cortex_core.catalogue import Catalogue
from cortex_core.errors import (
    CannotSleepError,
    InsufficientVramError,
    InvalidRequestBodyError,
    ModelLoadingError,
    ModelNotFoundError,
)
from cortex_core.node import ModelStatus
from cortex_gateway.config import EvictionSettings
from cortex_gateway.declared import find_entry, name_of, names_of
from cortex_gateway.dispatcher import error_of
from cortex_gateway.displacer import Displacer
from cortex_gateway.eviction import Displace, Room
from cortex_gateway.fleet import Fleet
from cortex_gateway.loader import Loader
from cortex_gateway.openai_models import has_lifecycle
from cortex_gateway.placement import expected_s
from cortex_gateway.routing.least_busy import least_busy
from cortex_gateway.routing.plan import (
    Decision,
    Load,
    Queue,
    Refuse,
    Serve,
    Wait,
    Wake,
    find_id,
    plan,
)
from cortex_gateway.view import EVERYWHERE, FleetView, Resident

log = logs.get(__name__)


class ModelOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /fleet/models/…: which model, by any of its names, and where.

    `node` None: for a load the best; to pin, every node; else each that has it.
    """

    model_id: str
    node: str | None = None


class NodeOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /fleet/nodes/…: which node."""

    node: str


class PlanOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /fleet/plan: which model."""

    model_id: str


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What an order led to at one place. `status`: a ModelStatus, `unloaded`, `pinned`, `unpinned`, `drained` or `undrained`.

    `model_id` is None where it is about a node, `node` None where it is about every node; `already`: nothing had
    to be done.
    """

    status: str
    model_id: str | None = None
    node: str | None = None
    already: bool = False


class DoneAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of every order: place by place."""

    done: list[Done]


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a request for a model would lead to if there were this node alone.

    Attributes:
        fits: it serves there, or could now.
        decision: `serve`, `wait`, `queue`, `wake`, `load` or `refuse`.
        reason: why that.
        needed_mb: MiB of each device that it would take; empty: none, or not known.
        would_displace: who would make room, and how: `sleep` or `unload`.
        expected_s: seconds until it would be up there, by what was measured there, with the time to make room; None: it
            is up, or was never brought up there since this gateway looks.
    """

    node: str
    fits: bool
    decision: str
    reason: str
    needed_mb: dict[int, int] = {}
    would_displace: dict[str, str] = {}
    expected_s: float | None = None


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /fleet/plan: what the next request would lead to, and where; `chosen` None: nowhere now."""

    model_id: str
    decision: str
    reason: str
    chosen: str | None
    nodes: list[NodePlan]


class Operator:
    """Carries out orders.

    Args:
        fleet: what is known; owner of pins and drained nodes.
        catalogue: what is declared.
        loader: brings models up.
        displacer: moves them down.
        rules: how models make room for others.
        load_wait_s: seconds that a load or wake may take.
    """

    def __init__(
        self,
        fleet: Fleet,
        catalogue: Catalogue,
        loader: Loader,
        displacer: Displacer,
        rules: EvictionSettings,
        load_wait_s: float,
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._loader = loader
        self._displacer = displacer
        self._rules = rules
        self._load_wait_s = load_wait_s

    def declare(self, catalogue: Catalogue) -> None:
        """This is declared from now on."""
        self._catalogue = catalogue

    async def load(self, order: ModelOrder) -> DoneAnswer:
        """Have a model up, on the node or on the best; others make room where they may.

        Raises:
            InvalidRequestBodyError, ModelNotFoundError: the caller's fault.
            InsufficientVramError: who has the room may not go now; the message says who.
            ModelInfeasibleError, NoHealthyNodeError: as for a request.
            LoadFailedError, BusyError: as Loader.bring_up.
        """
        deadline_s = time.monotonic() + self._load_wait_s
        already = True
        while True:
            decision = self._plan_load(order)
            if isinstance(decision, Serve):
                self._check_lifecycle(decision.node, decision.model_id)
                return _told(_up(decision, already=already))
            already = False
            if isinstance(decision, Refuse):
                raise error_of(decision)
            if isinstance(decision, Queue):
                raise InsufficientVramError(model=decision.model, reason=decision.reason)
            if isinstance(decision, Wait):
                await self._loader.wait(decision, deadline_s)
            else:
                await self._loader.bring_up(decision, deadline_s)

    async def wake(self, order: ModelOrder) -> DoneAnswer:
        """Have a sleeping model up again; one that does not sleep is not loaded. Raises as `load`."""
        residents = await self._residents(order)
        for resident in residents:
            if resident.state.status == ModelStatus.SLEEPING:
                name = resident.state.id
                return await self.load(ModelOrder(model_id=name, node=resident.node.name))
        return _told(*(self._done(each, each.state.status, already=True) for each in residents))

    async def unload(self, order: ModelOrder) -> DoneAnswer:
        """Take a model down; its work ends first.

        Raises:
            ModelNotFoundError, InvalidRequestBodyError: the caller's fault.
            InsufficientVramError: its work did not end in time.
            ModelLoadingError: its load has yet to begin, so that it cannot be ended.
        """
        return await self._move_down(order, "unload")

    async def sleep(self, order: ModelOrder) -> DoneAnswer:
        """Put a model to sleep; its work ends first. Raises as `unload`, and CannotSleepError."""
        return await self._move_down(order, "sleep")

    def pin(self, order: ModelOrder, *, pinned: bool) -> DoneAnswer:
        """Have a model never evicted, on the node or on any, or let it be; nothing is moved by it.

        Raises:
            InvalidRequestBodyError: there is no such node.
            ModelNotFoundError: to pin, nobody declares or has it; what left may be unpinned.
        """
        if order.node is not None:
            self._check_node(order.node)
        name = self._name_to_pin(order.model_id, must_be=pinned)
        self._fleet.note_pin((order.node or EVERYWHERE, name), pinned=pinned)
        status = "pinned" if pinned else "unpinned"
        log.info("pin changed", model=name, node=order.node, status=status)
        return _told(Done(status=status, model_id=name, node=order.node))

    def drain(self, order: NodeOrder, *, drained: bool) -> DoneAnswer:
        """Send a node nothing new, or do so again; what runs there goes on, and who waits for a load there looks elsewhere."""
        self._check_node(order.node)
        self._fleet.note_drain(order.node, drained=drained)
        if drained:
            self._loader.leave(order.node)
        status = "drained" if drained else "undrained"
        log.info("drain changed", node=order.node, status=status)
        return _told(Done(status=status, node=order.node))

    def plan(self, order: PlanOrder) -> FleetPlan:
        """Say what the next request for the model would lead to, here and on each node. Nothing is done.

        Raises:
            ModelNotFoundError: nobody declares or has it.
        """
        decision = self._plan(order.model_id, None)
        if isinstance(decision, Refuse) and decision.code == ModelNotFoundError.code:
            raise error_of(decision)
        nodes = [node.name for node in self._fleet.view().nodes]
        view, catalogue = self._fleet.view(), self._catalogue
        has_node = isinstance(decision, Serve | Wait | Wake | Load)
        return FleetPlan(
            model_id=decision.model,
            decision=type(decision).__name__.lower(),
            reason=decision.reason,
            chosen=decision.node if has_node else None,
            nodes=[
                _node_plan(view, catalogue, node, self._plan(order.model_id, node))
                for node in nodes
            ],
        )

    def _plan_load(self, order: ModelOrder) -> Decision:
        """As `_plan`. A server that is no neuron counts only where no neuron has the model, or could."""
        decision = self._plan(order.model_id, order.node)
        if order.node is not None or not isinstance(decision, Serve):
            return decision
        if self._has_lifecycle(decision.node, decision.model_id):
            return decision
        view = self._fleet.view()
        neurons = [node.name for node in view.nodes if all(map(has_lifecycle, node.models))]
        elsewhere = self._decide(view.only(*neurons), order.model_id)
        return decision if isinstance(elsewhere, Refuse) else elsewhere

    def _plan(self, name: str, node: str | None) -> Decision:
        """What a request would lead to; with a node, as if there were no other."""
        view = self._fleet.view()
        if node is not None:
            self._check_node(node)
            model_id = find_id(view, self._catalogue, name)  # a name that only another node knows
            view = view.only(node)
            name = model_id
        return self._decide(view, name)

    def _decide(self, view: FleetView, name: str) -> Decision:
        return plan(
            view,
            self._catalogue,
            name,
            least_busy,
            eviction=self._rules,
            now_s=time.monotonic(),
        )

    async def _move_down(self, order: ModelOrder, how: Literal["sleep", "unload"]) -> DoneAnswer:
        return _told(
            *[
                await self._move(resident, how)
                for resident in await self._residents(order)
                if resident.node.name in self._nodes()  # else it has left while another was moved
            ]
        )

    async def _move(self, resident: Resident, how: Literal["sleep", "unload"]) -> Done:
        state, node = resident.state, resident.node.name
        if how == "sleep" and state.status == ModelStatus.SLEEPING:
            return self._done(resident, state.status, already=True)
        if how == "sleep" and state.status == ModelStatus.LOADING:
            raise ModelLoadingError(model=name_of(self._catalogue, state.id), node=node)
        if how == "sleep" and not state.can_sleep:
            raise CannotSleepError(model=state.id, harness=state.harness)
        name = name_of(self._catalogue, state.id)
        who = Displace(node=node, model=name, model_id=state.id, how=how)
        status = await self._displacer.move(who)
        log.info("model moved", model=name, node=node, status=status)
        return self._done(resident, status)

    def _done(self, resident: Resident, status: str, *, already: bool = False) -> Done:
        model = name_of(self._catalogue, resident.state.id)
        return Done(status=status, model_id=model, node=resident.node.name, already=already)

    async def _residents(self, order: ModelOrder) -> list[Resident]:
        """Where it is: on the node, or on any. Nodes where it comes up are looked at: they may not have listed it yet."""
        if order.node is not None:
            self._check_node(order.node)
        for node in self._where_it_comes(order):
            await self._loader.look(node)
        view = self._fleet.view()
        model_id = find_id(view, self._catalogue, order.model_id)
        names = names_of(find_entry(self._catalogue, model_id), model_id)
        there = [r for r in view.residents(*names) if order.node in (None, r.node.name)]
        if not there and (coming := self._where_it_comes(order)):
            raise ModelLoadingError(model=names[0], node=coming[0])
        if not there and find_entry(self._catalogue, model_id) is None:
            raise ModelNotFoundError(model=order.model_id)
        movable = [each for each in there if has_lifecycle(each.state)]
        if there and not movable:
            self._check_lifecycle(there[0].node.name, there[0].state.id)
        return movable

    def _where_it_comes(self, order: ModelOrder) -> list[str]:
        """Nodes where it is brought up, by us or of themselves."""
        view = self._fleet.view()
        model_id = find_id(view, self._catalogue, order.model_id)
        names = names_of(find_entry(self._catalogue, model_id), model_id)
        nodes = {node for node, name in view.loads if name in names}
        if place := view.coming(*names):
            nodes.add(place[0])
        return sorted(node for node in nodes if order.node in (None, node))

    def _name_to_pin(self, name: str, *, must_be: bool) -> str:
        """What the gateway calls a model. Raises ModelNotFoundError where it must be, and is not."""
        view = self._fleet.view()
        model_id = find_id(view, self._catalogue, name)
        if find_entry(self._catalogue, model_id):
            return name_of(self._catalogue, model_id)
        if there := view.residents(model_id):  # a bare name stands for its only bearer
            return there[0].state.id
        if must_be and not view.knows(model_id) and view.coming(model_id) is None:
            raise ModelNotFoundError(model=name)
        return model_id

    def _has_lifecycle(self, node: str, model_id: str) -> bool:
        state = self._fleet.node(node).state(model_id)
        return state is None or has_lifecycle(state)

    def _check_lifecycle(self, node: str, model_id: str) -> None:
        if not self._has_lifecycle(node, model_id):
            raise InvalidRequestBodyError(
                reason=f"'{model_id}' is served by '{node}' as it is, which is no neuron: nothing is loaded, unloaded "
                "or moved there",
                param="model_id",
            )

    def _nodes(self) -> list[str]:
        return [node.name for node in self._fleet.view().nodes]

    def _check_node(self, name: str) -> None:
        nodes = self._nodes()
        if name not in nodes:
            known = ", ".join(nodes) or "none"
            raise InvalidRequestBodyError(
                reason=f"there is no node '{name}'; nodes are {known}", param="node"
            )


def _up(served: Serve, *, already: bool) -> Done:
    return Done(status=ModelStatus.LOADED, model_id=served.model, node=served.node, already=already)


def _told(*done: Done) -> DoneAnswer:
    return DoneAnswer(done=list(done))


def _node_plan(view: FleetView, catalogue: Catalogue, node: str, decision: Decision) -> NodePlan:
    coming = decision if isinstance(decision, Wake | Load) else None
    return NodePlan(
        node=node,
        fits=not isinstance(decision, Queue | Refuse),
        decision=type(decision).__name__.lower(),
        reason=decision.reason,
        needed_mb=dict(coming.claims_mb) if coming else {},
        would_displace={each.model: each.how for each in coming.displaces} if coming else {},
        expected_s=_expected_s(view, catalogue, coming) if coming else None,
    )


def _expected_s(view: FleetView, catalogue: Catalogue, coming: Wake | Load) -> float | None:
    room, is_asleep = Room(displaces=coming.displaces), isinstance(coming, Wake)
    found = expected_s(view, catalogue, *coming.place, room, is_asleep=is_asleep)
    return None if found is None else round(found, 3)
