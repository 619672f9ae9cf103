# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio

from cortex_core.control import ModelSpec
from cortex_core.errors import LoadRefusedError
from cortex_core.node import FailedModel, ModelState, Progress
from cortex_core.testing import make_state
from neuron.activating import Activating
from neuron.default_models import RETRY_AFTER_S, DefaultModels
from neuron.weights.refusals import WeightsError

PASSING = WeightsError("repo_fetch_failed", "no network", "", passing=True)
STRUCTURAL = WeightsError("repo_fetch_failed", "no such repository", "")


class Loads:
    """Fails as told: by model, the errors of its first loads; and those in `fetched` are fetched until their event."""

    def __init__(self, **errors: list[WeightsError]) -> None:
        self.errors = errors
        self.tried: list[str] = []
        self.fetched: dict[str, asyncio.Event] = {}

    async def load(self, spec: ModelSpec, wait: bool) -> ModelState:
        model_id = spec.model_id
        if not wait:
            self.tried.append(model_id)
            progress = Progress(phase="downloading" if model_id in self.fetched else "starting")
            return make_state(model_id, "loading", progress=progress)
        if model_id in self.fetched:
            await self.fetched[model_id].wait()
        if errors := self.errors.get(model_id):
            raise errors.pop(0).refuse(model_id)
        return make_state(model_id)


class Waits:
    """A clock that stands still until it is let go."""

    def __init__(self) -> None:
        self.waited_s: list[float] = []
        self.over = asyncio.Event()

    async def sleep(self, wait_s: float) -> None:
        self.waited_s.append(wait_s)
        await self.over.wait()


async def run(loads: Loads, *model_ids: str) -> tuple[Activating, Waits]:
    activating, waits = Activating(list(model_ids)), Waits()
    waits.over.set()
    specs = [ModelSpec(model_id=model_id) for model_id in model_ids]
    await DefaultModels(specs, loads.load, activating, waits.sleep).run()
    return activating, waits


async def test_they_come_up_in_order_and_one_that_fails_stops_no_other() -> None:
    loads = Loads(b=[STRUCTURAL])
    activating, waits = await run(loads, "a", "b", "c")
    assert loads.tried == ["a", "b", "c"]
    assert waits.waited_s == [], "structural: not tried again"
    state = activating.state()
    assert (state.state, state.completed) == ("ready", ["a", "c"])
    assert [failed.model_id for failed in state.failed] == ["b"]


async def test_what_waits_for_its_source_holds_up_no_other() -> None:
    loads = Loads(a=[PASSING])
    activating, waits = Activating(["a", "b"]), Waits()
    specs = [ModelSpec(model_id="a"), ModelSpec(model_id="b")]
    running = asyncio.create_task(DefaultModels(specs, loads.load, activating, waits.sleep).run())
    while not waits.waited_s or "b" not in loads.tried:
        await asyncio.sleep(0)
    state = activating.state()
    assert (state.state, state.pending, state.completed) == ("pre_warming", ["a"], ["b"])
    waits.over.set()
    await running
    assert loads.tried == ["a", "b", "a"]
    assert activating.state().completed == ["b", "a"]


async def test_what_is_still_to_be_fetched_holds_up_no_other() -> None:
    loads = Loads()
    fetched = loads.fetched["a"] = asyncio.Event()
    activating, waits = Activating(["a", "b", "c"]), Waits()
    specs = [ModelSpec(model_id=model_id) for model_id in "abc"]
    running = asyncio.create_task(DefaultModels(specs, loads.load, activating, waits.sleep).run())
    while activating.state().completed != ["b", "c"]:
        await asyncio.sleep(0)
    assert activating.state().in_progress == ["a"]
    fetched.set()
    await running
    assert activating.state().state == "ready"


async def test_six_rounds_and_then_it_is_failed() -> None:
    loads = Loads(a=[PASSING] * 9)
    activating, waits = await run(loads, "a")
    assert waits.waited_s == [10, 20, 40, 80, 160, 300] == list(RETRY_AFTER_S)
    assert len(loads.tried) == 7
    message = LoadRefusedError(
        model="a", load_kind="repo_fetch_failed", reason="no network", suggestion=""
    ).message
    assert activating.state().failed == [FailedModel(model_id="a", error=message)]


async def test_what_turns_out_structural_is_tried_no_more() -> None:
    loads = Loads(a=[PASSING, STRUCTURAL])
    activating, waits = await run(loads, "a")
    assert waits.waited_s == [10]
    assert [failed.model_id for failed in activating.state().failed] == ["a"]
