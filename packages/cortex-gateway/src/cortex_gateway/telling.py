# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the journal of a request while it runs: what is told of it, from its arrival to however it ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from cortex_core.errors import CortexError, InternalError
from cortex_core.http.exchange import ClientGoneError
from cortex_gateway.journal import Journal
from cortex_gateway.turn import Turn


@contextmanager
def telling(journal: Journal, turn: Turn) -> Iterator[None]:
    """The request runs for as long as the context lasts; what it raises passes through."""
    journal.begin(turn.record)
    ended_by: BaseException | None = None
    try:
        yield
    except BaseException as error:
        ended_by = error
        raise
    finally:
        outcome, status, code = _outcome(turn, ended_by)
        turn.record.load_wait_s = turn.waited_s
        turn.record.end(outcome, status, code, time.monotonic())
        journal.end(turn.record)


def _outcome(turn: Turn, ended_by: BaseException | None) -> tuple[str, int | None, str | None]:
    """How it ended, the status, and the code of the error."""
    exchange = turn.exchange
    failed = "failed" if turn.record.node else "refused"
    if isinstance(ended_by, CortexError):
        return failed, exchange.status or ended_by.status, ended_by.code
    if isinstance(ended_by, Exception) and not isinstance(ended_by, ClientGoneError):
        return failed, exchange.status or InternalError.status, InternalError.code
    if ended_by is not None:  # it was cancelled, or could not be written to
        return "left", exchange.status, None
    code = exchange.notes.get("error_code")
    has_failed = code is not None or (exchange.status or 200) >= 400
    return failed if has_failed else "answered", exchange.status, code
