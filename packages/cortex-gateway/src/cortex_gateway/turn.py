# SPDX-License-Identifier: GPL-3.0-or-later
"""One request on its way: what the client sent, what became of it, and which headers go with it."""

import asyncio
import time

from cortex_core import wire
from cortex_core.errors import CortexError
from cortex_core.http.exchange import Exchange
from cortex_core.http.headers import Headers, find, to_upstream
from cortex_core.http.keys import name_principal
from cortex_core.openai import Asked
from cortex_gateway.dialects.dialect import Dialect, Translator
from cortex_gateway.journal import Record
from cortex_gateway.routing.plan import Serve
from cortex_gateway.routing.session import read_session

# Whatever curl or a script declares, the body was read as JSON.
_CONTENT_TYPE = (b"content-type", b"application/json")
_STREAM = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"))
_WANT_USAGE = (wire.USAGE.encode(), b"1")
_REQUEST_ID = wire.REQUEST_ID.encode()
_PRINCIPAL = wire.PRINCIPAL.encode()
_NODE = wire.NODE.encode()
_MODEL = wire.MODEL.encode()
_DROPPED = wire.DROPPED.encode()
_DECISION = wire.DECISION.encode()
_OVERHEAD_MS = wire.OVERHEAD_MS.encode()


class Turn:
    """One request on its way.

    Attributes:
        exchange: the client's side.
        dialect: how the client speaks.
        asked: the narrow look at its body.
        body: as the client sent it.
        model: what the client asked for, which may be an alias; or what serves in its place.
        began_s: monotonic seconds at its arrival.
        waited_s: how long it was held for loads.
        decision: `serve`, or the first thing that had to be done: `wait`, `wake` or `load`.
        held_s: since when it is held, monotonic seconds; None: it was not.
        queued_s: likewise, since when it waits for room.
        kept_s: when it last got a sign of life, monotonic seconds; None: it did not.
        is_open: its headers have gone out, since it waits for long, and nothing of an answer yet.
        may_hold: it may be held for loads; it was not once in vain, beside replicas that are full.
        passed: nodes that refused it, or lost it.
        losses: how many of them lost it, or were lost while its model was to come up there.
        shunned: nodes where its model was to come up, and did not.
        mishap: why not, the last time; None: it was not tried, or did.
        fallbacks: what may serve in its model's place, and was not tried; None: that was not asked yet.
        failed: why the model that the client asked for does not serve; None: it may.
        passing: what its answer goes through; None: it has not begun.
        limit: by which it can be cut; None: it has no node yet.
        unheard: by which waiting for its answer's beginning can be ended; None: it has begun, or is not waited for.
        was_cut: it ran when the gateway's time was over.
        record: what is told of it, to who asks why it went where it went.
    """

    def __init__(self, exchange: Exchange, dialect: Dialect, asked: Asked, body: bytes) -> None:
        self.exchange = exchange
        self.dialect = dialect
        self.asked = asked
        self.body = body
        self.model = asked.model or ""
        self.began_s = time.monotonic()
        self.waited_s = 0.0
        self.decision = "serve"
        self.held_s: float | None = None
        self.queued_s: float | None = None
        self.kept_s: float | None = None
        self.is_open = False
        self.may_hold = True
        self.passed: frozenset[str] = frozenset()
        self.losses = 0
        self.shunned: frozenset[str] = frozenset()
        self.mishap: CortexError | None = None
        self.fallbacks: list[str] | None = None
        self.failed: CortexError | None = None
        self.passing: Translator | None = None
        self.limit: asyncio.Timeout | None = None
        self.unheard: asyncio.Timeout | None = None
        self.was_cut = False
        self._session: int | None = None
        self.record = Record(
            exchange.request_id,
            dialect.name,
            self.model,
            stream=bool(asked.stream),
            at=time.time(),
            began_s=self.began_s,
        )
        exchange.notes.update(
            dialect=dialect.name, model=self.model, stream=bool(asked.stream), bytes_in=len(body)
        )

    @property
    def overhead_s(self) -> float:
        """Seconds since its arrival that it was not held for a load."""
        return time.monotonic() - self.began_s - self.waited_s

    @property
    def has_begun(self) -> bool:
        """Whether something of an answer has gone out."""
        return self.exchange.status is not None and not self.is_open

    def session(self) -> int:
        """The number of its conversation. Read when it is asked for, once."""
        if self._session is None:
            self._session = read_session(self.exchange.scope["headers"], self.body)
        return self._session

    def ask_for(self, model: str) -> None:
        """Ask for another model, as if nothing had been tried."""
        self.exchange.notes.setdefault("fallback_of", self.model)
        self.exchange.notes.pop(
            "node", None
        )  # it has none now: where nobody serves it, it is a rejection
        self.model = model
        self.passed = frozenset()
        self.losses = 0
        self.shunned = frozenset()
        self.mishap = None
        self.may_hold = True
        self.held_s = None
        self.queued_s = None

    def speak(self, dialect: Dialect) -> None:
        """Put it to the upstream by another dialect of the same path. Raises as `Dialect.read`."""
        self.asked = dialect.read(self.body)
        self.dialect = dialect
        self.exchange.notes["dialect"] = dialect.name

    async def open(self, served: Serve | None) -> None:
        """Send the headers of a stream, though nobody has answered yet; None: nor is it known who is to."""
        self.is_open = True
        if served is not None:
            ours = self.answer_headers(served, self.overhead_s, [])
        else:
            ours = [*self._dropped_header([]), (_DECISION, self.decision.encode())]
        await self.exchange.start(200, [*_STREAM, *ours])

    def cut(self) -> None:
        """End it now, where it stands."""
        self.was_cut = True
        if self.limit:
            self.limit.reschedule(0.0)

    def request_headers(self) -> Headers:
        """What goes to the neuron: the client's headers without those that are ours to set."""
        theirs = to_upstream(self.exchange.scope["headers"])
        return [
            *(field for field in theirs if field[0] != _CONTENT_TYPE[0]),
            _CONTENT_TYPE,
            _WANT_USAGE,
            (_REQUEST_ID, self.exchange.request_id.encode()),
            (_PRINCIPAL, self._principal().encode("latin-1")),
        ]

    def _principal(self) -> str:
        scope = self.exchange.scope
        address = scope.get("client")
        return name_principal(scope["headers"], address[0] if address else None)

    def answer_headers(self, served: Serve, overhead_s: float, reply: Headers) -> Headers:
        """What the client is told beside the headers of the neuron's `reply`, which may name what it dropped as well."""
        return [
            *self._dropped_header(reply),
            (_NODE, served.node.encode()),
            # an operator, or another server, may call a model what they like, a header holds ASCII
            (_MODEL, served.model.encode("unicode_escape")),
            (_DECISION, self.decision.encode()),
            (_OVERHEAD_MS, f"{overhead_s * 1000:.3f}".encode()),
        ]

    def _dropped_header(self, reply: Headers) -> Headers:
        ours = ", ".join(self.dialect.notes(self.asked).dropped)
        dropped = [ours.encode("ascii", "backslashreplace"), find(reply, _DROPPED)]
        return [(_DROPPED, b", ".join(filter(None, dropped)))] if any(dropped) else []
