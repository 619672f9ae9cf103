# SPDX-License-Identifier: GPL-3.0-or-later
"""Which requests of one model run, which wait, and which are refused. The one owner of those counts.

Each principal waits in a line of its own, and the lines take turns: who sends two hundred requests at once does not
make another's single one wait behind all of them. Nor does a line that fills the queue shut out who has none in it. Pure.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from enum import Enum

from cortex_core.errors import QueueFullError, RateLimitExceededError
from neuron.config import AdmissionSettings

# Whoever does not say who they are: one principal like the others.
ANONYMOUS = "anonymous"

# Seconds that one who waits is reckoned to take, and the bounds of what is told from it.
EACH_S = 2.0
SOONEST_S, LATEST_S = 1.0, 120.0


class TurnedAwayError(Exception):
    """No place will come: the engine takes no more work. Why, the residents know. Never sent to anybody."""


class Stage(Enum):
    """Where a request is: waiting for its turn, running, or out, which it stays."""

    WAITING = "waiting"
    RUNNING = "running"
    OUT = "out"


class Place:
    """One request's place. Its stage is changed by Admission alone; `gave_way`: it is out since others needed the place."""

    __slots__ = ("gave_way", "principal", "stage", "wake")

    def __init__(self, principal: str, wake: Callable[[], None]) -> None:
        self.principal = principal
        self.wake = wake
        self.stage = Stage.WAITING
        self.gave_way = False


class Admission:
    """Gives out the places of one model."""

    def __init__(self, settings: AdmissionSettings | None = None) -> None:
        self._settings = settings or AdmissionSettings()
        self._running = 0
        self._waiting = 0
        self._lines: OrderedDict[str, dict[Place, None]] = OrderedDict()  # whose turn it is, first
        self._held: Counter[str] = Counter()
        self._closed = False

    @property
    def settings(self) -> AdmissionSettings:
        """The limits in force."""
        return self._settings

    @property
    def running(self) -> int:
        """Requests that have been let through and have not ended."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._waiting

    @property
    def retry_after_s(self) -> float:
        """When somebody who is refused now may try again: the longer, the more wait."""
        return min(max(EACH_S * self._waiting, SOONEST_S), LATEST_S)

    def apply_settings(self, settings: AdmissionSettings) -> None:
        """Other limits from now on."""
        self._settings = settings
        self._fill()

    def queue_full(self, model: str) -> QueueFullError:
        """What one is told for whom there is no place to wait."""
        return QueueFullError(model=model, waiting=self._waiting, retry_after_s=self.retry_after_s)

    def enter(self, model: str, principal: str, wake: Callable[[], None]) -> Place:
        """Take a place, which must be given back by `leave`: a running one where there is one, else one in the line.

        `wake` is called, once, when the stage of one that waits has changed by another's doing.

        Raises:
            TurnedAwayError: the engine takes no more work.
            RateLimitExceededError: the principal has as many requests here as it may.
            QueueFullError: as many wait as may, and no line is so long that its last one gives way.
        """
        if self._closed:
            raise TurnedAwayError
        most = self._settings.max_per_principal
        if most is not None and self._held[principal] >= most:
            reason = f"{most} requests for '{model}' are running or waiting, as many as may at once"
            raise RateLimitExceededError(reason=reason, retry_after_s=self.retry_after_s)
        if not self._has_room() and self._waiting >= self._settings.max_waiting:
            longest = max(self._lines.values(), key=len, default={})
            if principal in self._lines or len(longest) < 2:
                raise self.queue_full(model)
            self._give_way(next(reversed(longest)))
        place = Place(principal, wake)
        self._held[principal] += 1
        if self._has_room():  # then nobody waits: room goes to who waits as soon as there is some
            self._run(place)
        else:
            self._lines.setdefault(principal, {})[place] = None
            self._waiting += 1
        return place

    def leave(self, place: Place) -> None:
        """Give a place back, wherever it is; what that frees goes to the next at once. May be repeated."""
        if place.stage is Stage.RUNNING:
            self._running -= 1
            self._let_go(place)
        elif place.stage is Stage.WAITING:
            self._unqueue(place)
            self._let_go(place)
        self._fill()

    def turn_away(self) -> None:
        """Send everybody away who waits. Who runs goes on."""
        waiting = [place for line in self._lines.values() for place in line]
        for place in waiting:
            self._unqueue(place)
            self._let_go(place)
            place.wake()

    def close(self) -> None:
        """Turn everybody away who waits, and who comes from now on."""
        self._closed = True
        self.turn_away()

    def _give_way(self, place: Place) -> None:
        self._unqueue(place)
        self._let_go(place)
        place.gave_way = True
        place.wake()

    def _has_room(self) -> bool:
        most = self._settings.max_running
        return most is None or self._running < most

    def _fill(self) -> None:
        while self._lines and self._has_room():
            principal, line = next(iter(self._lines.items()))
            place = next(iter(line))
            self._unqueue(place)
            if line:  # its next one waits for the others' turns
                self._lines.move_to_end(principal)
            self._run(place)
            place.wake()

    def _run(self, place: Place) -> None:
        place.stage = Stage.RUNNING
        self._running += 1

    def _unqueue(self, place: Place) -> None:
        line = self._lines[place.principal]
        del line[place]
        if not line:
            del self._lines[place.principal]
        self._waiting -= 1

    def _let_go(self, place: Place) -> None:
        place.stage = Stage.OUT
        self._held[place.principal] -= 1
        if not self._held[place.principal]:
            del self._held[place.principal]
