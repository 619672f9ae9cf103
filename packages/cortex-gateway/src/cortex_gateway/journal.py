# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of each request, step by step, and why? The last ones are kept. Never what was asked or answered. Pure."""

from collections.abc import Callable

import msgspec

# Enough to explain what somebody just complained of; the log has one line of each for longer.
KEPT_REQUESTS = 1000
# A request that waits for long looks again and again; the first steps and the last tell how it went.
KEPT_STEPS = 40


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A node that could have served, or could not, and why: what was known of it when the step was decided."""

    node: str
    says: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One decision.

    Attributes:
        after_s: seconds since the request's arrival.
        decision: `serve`, `wait`, `queue`, `wake`, `load` or `refuse`; `failed`, what was begun came to nothing;
            `elsewhere`, a node refused it or lost it; `fallback`, another model serves in its model's place.
        model: what was decided about.
        node: where; None: nowhere.
        candidates: the nodes that were considered, of the first step and the last; those between have none.
        times: how often the same was decided in a row.
    """

    after_s: float
    decision: str
    model: str
    reason: str
    node: str | None = None
    candidates: list[Candidate] = []
    times: int = 1


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of GET /fleet/requests/{id}.

    Attributes:
        at: when it arrived, Unix seconds.
        model: what the client asked for.
        outcome: `running`; `answered`; `refused`, with an error and before it was sent anywhere; `failed`, with one
            afterwards; `left`, by the client.
        served_model: what served it, by the gateway's name; None: nothing.
        node: that served it, or had it last; None: it got nowhere.
        status: of the answer; None: it has not begun.
        queue_wait_s, load_wait_s: seconds for which it waited for room, and in all for a model to come up.
        duration_s: to its end, or until now.
        error_code: what it ended in; None: in an answer.
    """

    request_id: str
    at: float
    dialect: str
    model: str
    stream: bool
    outcome: str
    served_model: str | None
    node: str | None
    status: int | None
    queue_wait_s: float
    load_wait_s: float
    duration_s: float
    error_code: str | None
    steps: list[Step]


class RunningRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that runs. `step` is its last decision, and `reason` why that; the rest as in Story."""

    request_id: str
    model: str
    dialect: str
    stream: bool
    node: str | None
    duration_s: float
    step: str | None
    reason: str | None


class Record:
    """One request's story as it goes on. Times are monotonic seconds.

    Attributes:
        outcome, status, error_code, load_wait_s: as in Story.
    """

    __slots__ = (
        "_at", "_began_s", "_dialect", "_ended_s", "_model", "_queue_wait_s", "_steps", "_stream", "error_code",
        "load_wait_s", "node", "outcome", "request_id", "served_model", "status",
    )  # fmt: skip

    def __init__(
        self, request_id: str, dialect: str, model: str, *, stream: bool, at: float, began_s: float
    ) -> None:
        self.request_id = request_id
        self._dialect = dialect
        self._model = model
        self._stream = stream
        self._at = at
        self._began_s = began_s
        self._ended_s: float | None = None
        self._queue_wait_s = 0.0
        self._steps: list[Step] = []
        self.load_wait_s = 0.0
        self.outcome = "running"
        self.status: int | None = None
        self.error_code: str | None = None
        self.node: str | None = None
        self.served_model: str | None = None

    @property
    def last(self) -> Step | None:
        """The newest step; None: there is none yet."""
        return self._steps[-1] if self._steps else None

    def add(
        self,
        now_s: float,
        decision: str,
        model: str,
        reason: str,
        node: str | None = None,
        find: Callable[[], list[Candidate]] = list,
    ) -> None:
        """Note a step, but only its number where it is the last one again. `find` gives its candidates."""
        last = self.last
        if last and (last.decision, last.node, last.reason) == (decision, node, reason):
            self._steps[-1] = msgspec.structs.replace(last, times=last.times + 1)
            return
        self._queue_wait_s += self._queued_s(now_s)
        if last and len(self._steps) > 1:  # they are most of what is kept
            self._steps[-1] = msgspec.structs.replace(last, candidates=[])
        if len(self._steps) == KEPT_STEPS:
            del self._steps[KEPT_STEPS // 2]
        step = Step(
            after_s=round(now_s - self._began_s, 4),
            decision=decision,
            model=model,
            reason=reason,
            node=node,
            candidates=find(),
        )
        self._steps.append(step)

    def note_served(self, model: str, node: str) -> None:
        """It is sent there."""
        self.served_model, self.node = model, node

    def end(self, outcome: str, status: int | None, error_code: str | None, now_s: float) -> None:
        """It is over."""
        self._queue_wait_s += self._queued_s(now_s)
        self._ended_s = now_s
        self.outcome, self.status, self.error_code = outcome, status, error_code

    def tell(self, now_s: float) -> Story:
        """All of it."""
        return Story(
            request_id=self.request_id,
            at=self._at,
            dialect=self._dialect,
            model=self._model,
            stream=self._stream,
            outcome=self.outcome,
            served_model=self.served_model,
            node=self.node,
            status=self.status,
            queue_wait_s=round(self._queue_wait_s + self._queued_s(now_s), 4),
            load_wait_s=round(self.load_wait_s, 4),
            duration_s=round((self._ended_s or now_s) - self._began_s, 4),
            error_code=self.error_code,
            steps=list(self._steps),
        )

    def tell_running(self, now_s: float) -> RunningRequest:
        """Where it is now."""
        return RunningRequest(
            request_id=self.request_id,
            model=self._model,
            dialect=self._dialect,
            stream=self._stream,
            node=self.node,
            duration_s=round(now_s - self._began_s, 4),
            step=self.last.decision if self.last else None,
            reason=self.last.reason if self.last else None,
        )

    def _queued_s(self, now_s: float) -> float:
        """Seconds since the last step, where that is waiting for room."""
        waits = self.last is not None and self.last.decision == "queue" and self._ended_s is None
        return now_s - self._began_s - self._steps[-1].after_s if waits else 0.0


class Journal:
    """The owner of the records: of requests that run, and of the last ones."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._running: dict[int, Record] = {}

    def begin(self, record: Record) -> None:
        """A request has come. One of the same id is forgotten, and so is the oldest where there are too many."""
        self._records.pop(record.request_id, None)
        self._records[record.request_id] = record
        self._running[id(record)] = record
        if len(self._records) > KEPT_REQUESTS:
            del self._records[next(iter(self._records))]

    def end(self, record: Record) -> None:
        """It is over, and was told so."""
        self._running.pop(id(record), None)

    def find(self, request_id: str) -> Record | None:
        """The newest of an id; None: there is none, or it was too long ago."""
        return self._records.get(request_id)

    @property
    def running(self) -> list[Record]:
        """The requests that run, oldest first."""
        return list(self._running.values())
