# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model needs, what devices have free, and who holds the rest: per device, in MiB."""

from typing import Any

import pytest

from cortex_core.catalogue import Catalogue, Model
from cortex_core.node import DeviceHealth, Health, ModelState
from cortex_core.testing import make_device, make_discovery, make_state
from cortex_gateway.memory import Need, free_mb, held_by_all, need_of, need_to_wake
from cortex_gateway.view import FleetView, Needs, NodeView

PAIR = make_discovery(make_device(0, 24_000), make_device(1, 24_000))


def node(free: tuple[int | None, ...], *states: ModelState) -> NodeView:
    devices = [DeviceHealth(index=i, vram_free_mb=mb) for i, mb in enumerate(free)]
    return NodeView(
        name="a",
        endpoint="http://x",
        is_up=True,
        discovery=PAIR,
        models=states,
        health=Health(uptime_secs=1, devices=devices),
    )


EMPTY = node((24_000, 24_000))


def need(
    model: Model, view: FleetView | None = None, at: NodeView = EMPTY
) -> tuple[int | None, int]:
    found = need_of(view or FleetView(nodes=()), at, model)
    return found.share_mb, found.count


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Model(id="m", vram_mb=20_000), (20_000, 1)),
        (Model(id="m", vram_mb=20_001, min_devices=2), (10_001, 2)),
        (Model(id="m", vram_mb=20_000, tensor_parallel=4), (5_000, 4)),
        (Model(id="m"), (None, 1)),
        (Model(id="m", harness="echo"), (None, 0)),
        (Model(id="m", harness="echo", vram_mb=10), (10, 1)),
    ],
)
def test_what_is_declared_is_split_evenly(model: Model, expected: tuple[int | None, int]) -> None:
    assert need(model) == expected


def test_what_is_known_better_goes_before_what_is_declared() -> None:
    model = Model(id="m", vram_mb=20_000, min_devices=2, source="hub")
    place = ("a", "hub:m")
    seen = FleetView(nodes=(), measured_mb={place: 18_000})
    assert need(model, seen) == (9_000, 2)
    said = FleetView(
        nodes=(), measured_mb={place: 18_000}, needs={place: Needs(devices_mb={0: 7, 1: 8})}
    )
    assert need(model, said) == (8, 2)
    knows_nothing = FleetView(nodes=(), measured_mb={place: 18_000}, needs={place: Needs()})
    assert need(model, knows_nothing) == (9_000, 2)


@pytest.mark.parametrize(
    ("fields", "among"),
    [
        ({}, (0, 1)),
        ({"devices": [1]}, (1,)),
        ({"devices": ["GPU-0"]}, (0,)),
        ({"min_device_vram_mb": 24_001}, ()),
    ],
)
def test_a_model_gets_devices_that_its_entry_allows(
    fields: dict[str, Any], among: tuple[int, ...]
) -> None:
    assert need_of(FleetView(nodes=()), EMPTY, Model(id="m", **fields)).among == among


@pytest.mark.parametrize(
    ("free", "share_mb", "count", "chosen"),
    [
        ({0: 9, 1: 10}, 9, 1, (1,)),
        ({0: 9, 1: 10}, 10, 1, (1,)),
        ({0: 9, 1: 10}, 11, 1, None),
        ({0: 9, 1: 10}, 9, 2, (1, 0)),
        # room is per device: two halves are none
        ({0: 9, 1: 9}, 18, 1, None),
        ({0: 9, 1: 10}, 10, 2, None),
        ({}, None, 0, ()),
    ],
)
def test_devices_are_chosen_by_what_they_have_free(
    free: dict[int, int], share_mb: int | None, count: int, chosen: tuple[int, ...] | None
) -> None:
    assert Need(share_mb=share_mb, count=count, among=(0, 1)).choose(free) == chosen


REAL = Catalogue(models=[Model(id="m", vram_mb=10_000)])
FAKE = Catalogue(models=[Model(id="m", vram_mb=10_000, harness="echo")])


def vllm(model_id: str, status: str = "loaded", **fields: Any) -> ModelState:
    return ModelState(id=model_id, harness="vllm", status=status, **fields)


@pytest.mark.parametrize(
    ("at", "catalogue", "view", "expected"),
    [
        # the driver's word
        (node((4_000, 24_000), vllm("m", devices=[0], vram_used_mb=20_000)), REAL, {}, {0: 4_000, 1: 24_000}),
        # what a driver does not see is counted as it is declared
        (node((24_000, 24_000), make_state("m")), FAKE, {}, {0: 14_000, 1: 24_000}),
        # a driver that does not tell
        (node((None, None), vllm("m", devices=[1])), REAL, {}, {0: 24_000, 1: 14_000}),
        # a sleeper has what it keeps
        (node((23_000, 24_000), vllm("m", "sleeping", devices=[0], vram_used_mb=1_000)), REAL, {}, {0: 23_000, 1: 24_000}),
        (node((24_000, 24_000), vllm("m", "failed", devices=[0])), REAL, {}, {0: 24_000, 1: 24_000}),
        # a load under way has its claim, whatever it has taken of it
        (EMPTY, REAL, {"loads": {("a", "m"): {0: 10_000}}}, {0: 14_000, 1: 24_000}),
        (node((21_000, 24_000), vllm("m", "loading", devices=[0], vram_used_mb=3_000)), REAL, {"loads": {("a", "m"): {0: 10_000}}}, {0: 14_000, 1: 24_000}),
        # what others load
        (node((24_000, 24_000), vllm("m", "loading", devices=[0])), REAL, {}, {0: 14_000, 1: 24_000}),
        # another node's load
        (EMPTY, REAL, {"loads": {("b", "m"): {0: 10_000}}}, {0: 24_000, 1: 24_000}),
    ],
)  # fmt: skip
def test_what_can_still_be_given_of_each_device(
    at: NodeView, catalogue: Catalogue, view: dict[str, Any], expected: dict[int, int]
) -> None:
    assert free_mb(FleetView(nodes=(at,), **view), catalogue, at) == expected


def test_what_a_model_has_itself_is_free_for_it() -> None:
    at = node((23_000, 24_000), vllm("m", "sleeping", devices=[0], vram_used_mb=1_000))
    view = FleetView(nodes=(at,), measured_mb={("a", "m"): 20_000})
    assert free_mb(view, REAL, at, without=("a", "m")) == {0: 24_000, 1: 24_000}
    found = need_to_wake(view, REAL, at, at.models[0])
    assert (found.share_mb, found.count, found.among) == (20_000, 1, (0,))


def test_a_model_of_unknown_size_has_what_nobody_else_explains() -> None:
    at = node((4_000, 24_000), vllm("m", devices=[0]), vllm("x", devices=[0]))
    held = held_by_all(FleetView(nodes=(at,)), REAL, at)
    assert held == {("a", "m"): {0: 10_000}, ("a", "x"): {0: 10_000}}


def test_an_echo_engine_has_nothing_unless_it_is_said_to() -> None:
    at = node((4_000, 24_000), make_state("x"))
    assert held_by_all(FleetView(nodes=(at,)), REAL, at) == {("a", "x"): {}}
