# SPDX-License-Identifier: GPL-3.0-or-later
"""The test kit: what is really on the nodes of a simulated fleet, whatever its gateway believes."""

from cortex_core.catalogue import Model
from cortex_core.node import DeviceHealth, Health, ModelState
from cortex_core.testing import make_device, make_discovery
from cortex_gateway.fleet import Report
from cortex_gateway.view import Move

ASLEEP_MB = 500
LOAD_S, WAKE_S, SLEEP_S, UNLOAD_S = 10.0, 2.0, 1.0, 1.0
TAKES_S: dict[Move, float] = {
    "load": LOAD_S,
    "wake": WAKE_S,
    "sleep": SLEEP_S,
    "unload": UNLOAD_S,
}
_THEN: dict[Move, str] = {
    "load": "loaded",
    "wake": "loaded",
    "sleep": "sleeping",
    "unload": "gone",
}


class BrokenRuleError(AssertionError):
    """What must never happen was decided."""


def check(is_kept: bool, says: str) -> None:
    """A rule. Raises BrokenRuleError: it is not kept."""
    if not is_kept:
        raise BrokenRuleError(says)


class Engine:
    """A model on a simulated node."""

    def __init__(self, model: Model, devices: list[int], share_mb: int) -> None:
        self.model = model
        self.devices = devices
        self.share_mb = share_mb
        self.status = "loading"
        self.held_mb = share_mb


class Machine:
    """A simulated node: what is really there."""

    def __init__(self, name: str, sizes_mb: list[int]) -> None:
        self.name = name
        self.sizes_mb = sizes_mb
        self.engines: dict[str, Engine] = {}
        self.is_down = False
        self.started_s = 0.0
        # Engines on their way: until when, and what they are then.
        self.moves: dict[str, tuple[float, str]] = {}
        # How long each move of a model took. Kept when its engine goes, as neurons do.
        self.took_s: dict[str, dict[str, float]] = {}
        self.foreign_mb = [0] * len(sizes_mb)
        self.real_mb: dict[str, int] = {}
        self.breaking: set[str] = set()
        self.discovery = make_discovery(
            *(make_device(i, size) for i, size in enumerate(sizes_mb)), harnesses=("vllm",)
        )

    def free_mb(self, index: int) -> int:
        """Of a device, really."""
        held = sum(e.held_mb for e in self.engines.values() if index in e.devices)
        return self.sizes_mb[index] - held - self.foreign_mb[index]

    def share_mb(self, model: Model) -> int:
        """What it really takes of each device."""
        return -(-self.real_mb.get(model.id, model.vram_mb or 0) // model.min_devices)

    def begin(self, name: str, move: Move, now_s: float) -> float:
        """An engine is on its way from now on; until when. How long that takes is told at once."""
        until_s, then = now_s + TAKES_S[move], _THEN[move]
        self.took_s.setdefault(name, {})[move] = TAKES_S[move]
        self.engines[name].status = "loading" if then == "loaded" else "unloading"
        self.moves[name] = (until_s, then)
        return until_s

    def advance(self, now_s: float) -> None:
        """Whose time has come is what it was to be. This goes on whoever asked for it."""
        for name, (until_s, then) in list(self.moves.items()):
            if now_s < until_s:
                continue
            del self.moves[name]
            engine = self.engines[name]
            if then == "loaded" and name in self.breaking:
                self.breaking.discard(name)
                engine.status, engine.held_mb = "failed", 0
            elif then == "gone":
                del self.engines[name]
            else:
                engine.status = then
                engine.held_mb = ASLEEP_MB if then == "sleeping" else engine.share_mb

    def lose(self) -> None:
        """It is down, and nothing is left on it."""
        self.is_down = True
        self.engines.clear()
        self.moves.clear()

    def take(self, part: float) -> None:
        """Strangers have this part of what was free, and no more."""
        self.foreign_mb = [0] * len(self.sizes_mb)
        self.foreign_mb = [int(self.free_mb(i) * part) for i in range(len(self.sizes_mb))]

    def begin_load(self, model: Model) -> bool:
        """As a neuron does: on the devices with most room, or not at all."""
        before = self.engines.get(model.id)
        check(before is None or before.status == "failed", "loaded twice on one node")
        share_mb = self.share_mb(model)
        roomy = sorted(range(len(self.sizes_mb)), key=self.free_mb, reverse=True)
        chosen = roomy[: model.min_devices]
        if len(chosen) < model.min_devices or any(self.free_mb(i) < share_mb for i in chosen):
            return False
        self.engines[model.id] = Engine(model, chosen, share_mb)
        return True

    def begin_wake(self, engine: Engine) -> bool:
        """Whether there is room for it."""
        if any(self.free_mb(i) + ASLEEP_MB < engine.share_mb for i in engine.devices):
            return False
        engine.status, engine.held_mb = "loading", engine.share_mb
        return True

    def report(self, now_s: float) -> Report:
        """What a look at it finds."""
        states = tuple(
            ModelState(
                id=name,
                harness="vllm",
                status=engine.status,
                devices=engine.devices,
                vram_used_mb=engine.held_mb * len(engine.devices),
                can_sleep=engine.model.engine_args is not None,
                load_s=took_s.get("load"),
                wake_s=took_s.get("wake"),
                sleep_s=took_s.get("sleep"),
                unload_s=took_s.get("unload"),
            )
            for name, engine in self.engines.items()
            for took_s in (self.took_s.get(name, {}),)
        )
        devices = [
            DeviceHealth(index=i, vram_free_mb=self.free_mb(i)) for i in range(len(self.sizes_mb))
        ]
        health = Health(uptime_secs=now_s - self.started_s + 1, devices=devices)
        return Report(models=states, discovery=self.discovery, health=health)
